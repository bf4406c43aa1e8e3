"""Frozen networks whose features students learn to predict.

B clips, T frames, N patches of a clip, K tapped blocks, D and E the widths of the teacher's tokens and pooled vector.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.videomae import VideoMAE
from ivt2.nn.float8 import multiplies_float8, quantise
from ivt2.ops.masking import gather_tokens, visible_indices
from ivt2.ops.pixels import normalize_pixels
from ivt2.ops.whitening import whiten

_LOG = logging.getLogger(__name__)

TeacherDtype = Literal["float32", "bfloat16", "float8"]
_HELD_AS: Mapping[TeacherDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float8": torch.bfloat16,  # until the first clips come
}


class TeacherFeatures(NamedTuple):
    """What a teacher says about a batch of clips; unit vectors unless normalisation is off."""

    middle: Float[Tensor, "K B tokens D"]
    """Tokens after each tapped block in increasing depth; a CLS token, where the teacher has one, comes first."""
    final: Float[Tensor, "B E"] | None
    """Pooled vector, of a teacher that has one."""
    attention: Float[Tensor, "rows patches"] | None
    """How much the pooled vector attends to each patch, for masks: [B, N] of a teacher of clips, [B * T, N / T] of one
    of frames. The CLS token's share is left out, so a row sums to less than one."""

    def visible(self, masked: Bool[Tensor, "B N"], index: Int64[Tensor, "B Nv"] | None = None) -> "TeacherFeatures":
        """The same with the tokens of visible patches alone, and the CLS token: the targets of a masked student.

        Args:
            masked: True where a patch is hidden from the student; teachers see everything.
            index: Positions of the visible patches, where they are known.

        Raises:
            ValueError: if the mask is not one of the teacher's patches.
        """
        num_prefix = self.middle.shape[2] - masked.shape[1]
        if num_prefix not in {0, 1}:
            raise ValueError(f"a mask of {masked.shape[1]} patches does not fit {self.middle.shape[2]} tokens")
        index = visible_indices(masked) if index is None else index
        prefix, patches = self.middle[:, :, :num_prefix], self.middle[:, :, num_prefix:]
        shown = torch.stack([gather_tokens(layer, index) for layer in patches])
        return self._replace(middle=torch.cat([prefix, shown], dim=2))

    def whitened(self) -> "TeacherFeatures":
        """The same with tokens that spread equally in every direction, each layer by itself; see ``ops.whitening``."""
        return self._replace(middle=torch.stack([whiten(layer) for layer in self.middle]))

    def normalized(self) -> "TeacherFeatures":
        """The same as unit vectors, in single precision or better: half precision would bend them."""
        final = None if self.final is None else _unit(self.final)
        return self._replace(middle=_unit(self.middle), final=final)


class Teacher(nn.Module, ABC):
    """A frozen encoder: no gradients, and evaluation mode whatever ``train()`` asks for.

    The reference leaves the distillation teacher in training mode, so that stochastic depth garbles its targets.

    Attributes:
        num_prefix: CLS tokens that stand before the patches of ``middle``.
        gives_attention: Whether ``attention`` is given, so that masks can follow it.

    Args:
        encoder: The network; its parameters are frozen here.
        taps: Blocks, counted from 0 and increasing, whose tokens are targets; see ``taps_from_end``.
        normalize: Whether features are scaled to unit length.
    """

    num_prefix: int = 1
    gives_attention: bool = True

    def __init__(self, encoder: InternVideo2 | VideoMAE, *, taps: Sequence[int], normalize: bool = True) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.taps = tuple(taps)
        self.normalize = normalize
        self._float8: _Float8 | None = None
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":  # noqa: ARG002, FBT001, FBT002
        """Stay in evaluation mode: the whole model's ``train()`` must not reach a teacher."""
        return super().train(mode=False)

    def set_format(self, dtype: TeacherDtype, *, compile: bool = False, min_cosine: float = 0.999) -> "Teacher":
        """Hold and compute in a format of the teacher's own.

        ``float8`` comes with the first clips. They are asked about in bfloat16, the linear layers of the blocks are
        quantised, the clips are asked about again, and a teacher that has changed its mind is refused.

        Args:
            dtype: Format of weights and activations; ``float8`` is bfloat16 outside of those layers.
            compile: Whether each block is compiled when it runs for the first time.
            min_cosine: Least mean cosine, of tokens of each tapped block and of pooled vectors, between float8 and
                bfloat16.
        """
        self.to(_HELD_AS[dtype])
        self._float8 = _Float8(min_cosine, compile) if dtype == "float8" else None
        if compile and dtype != "float8":
            self._compile()
        return self

    @property
    def final_dim(self) -> int | None:
        """Width of the pooled vector; None where there is none."""
        return self.encoder.pooled_dim if isinstance(self.encoder, InternVideo2) else None

    def forward(self, video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"]) -> TeacherFeatures:
        """Features of whole clips, unit vectors unless ``normalize`` is off; see ``unnormalized``."""
        features = self.unnormalized(video)
        return features.normalized() if self.normalize else features

    @torch.no_grad()
    def unnormalized(self, video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"]) -> TeacherFeatures:
        """Features of whole clips as the encoder gives them, for whoever keeps but a part of the tokens.

        Frames of another size than the encoder's are resized to it (bicubic). The reference resizes VideoMAE's input to
        the size of the other teacher.

        Args:
            video: RGB pixels 0 to 255 as uint8, or floats that are normalised already.

        Raises:
            InputError: if the number of frames does not suit the encoder, or float8 does not suit the teacher.
        """
        frames = self._resized(video)
        if self._float8 is None or not len(frames):
            return self._features(frames)
        features = self._quantised(frames, self._float8)
        self._float8 = None
        return features

    @abstractmethod
    def _features(self, video: Tensor) -> TeacherFeatures:
        """Features before they are normalised."""

    def _quantised(self, frames: Tensor, float8: "_Float8") -> TeacherFeatures:
        """Features of the first clips in float8, which is in force from now on."""
        name, native = type(self).__name__, multiplies_float8(frames.device)
        expected = self._features(frames)
        if not quantise(self.encoder.blocks, native=native):
            raise InputError(f"{name} has no layer that float8 suits, of sides that 16 divides: set its dtype=bfloat16")
        if float8.compile:  # not before, for the blocks of bfloat16 run but once
            self._compile()
        features = self._features(frames)
        cosines = _cosines(self.taps, expected, features)
        for layer, cosine in cosines.items():
            if not cosine >= float8.min_cosine:  # NaN neither
                raise InputError(
                    f"{name} says something else in float8: mean cosine {cosine:.5f} with bfloat16 in {layer}, less "
                    f"than min_cosine={float8.min_cosine}: set its dtype=bfloat16"
                )
        _LOG.info("%s in float8: mean cosine %s with bfloat16", name, {k: round(v, 5) for k, v in cosines.items()})
        if not native:
            _LOG.warning("%s: %s does not multiply float8, which saves memory here but no time", name, frames.device)
        return features

    def _compile(self) -> None:
        """In place: the names of weights stay."""
        for block in self.encoder.blocks:
            block.compile()

    def _resized(self, video: Tensor) -> Tensor:
        size = (self.encoder.image_size, self.encoder.image_size)
        if video.shape[3:] == size:
            return video
        frames = normalize_pixels(video, self.encoder.mean, self.encoder.std).flatten(0, 1)
        frames = functional.interpolate(frames, size=size, mode="bicubic", align_corners=False)
        return torch.unflatten(frames, 0, video.shape[:2])


class InternVideo2Teacher(Teacher):
    """InternVideo2 as the teacher of a smaller one.

    Args:
        encoder: The video encoder.
        taps: See ``Teacher``; the published 1B teacher has {23, 26, 29, 33, 36, 39}.
        normalize: See ``Teacher``.

    Source: reference single_modality, distillation.
    """

    encoder: InternVideo2

    def __init__(self, encoder: InternVideo2, *, taps: Sequence[int], normalize: bool = True) -> None:
        super().__init__(encoder, taps=taps, normalize=normalize)

    def _features(self, video: Tensor) -> TeacherFeatures:
        encoded = self.encoder(video, taps=self.taps)
        attention = self.encoder.clip_projector.attention_map(encoded.tokens)[:, 1:]
        return TeacherFeatures(encoded.intermediates, encoded.pooled, attention)


class VideoMAETeacher(Teacher):
    """VideoMAE as the second teacher of pre-training: tokens alone, no pooled vector and no CLS token.

    Args:
        encoder: VideoMAE's encoder.
        taps: See ``Teacher``; the published run taps the last four of 40 blocks.
        normalize: See ``Teacher``.

    Source: reference single_modality, pre-training.
    """

    encoder: VideoMAE
    num_prefix = 0
    gives_attention = False

    def __init__(self, encoder: VideoMAE, *, taps: Sequence[int], normalize: bool = True) -> None:
        super().__init__(encoder, taps=taps, normalize=normalize)

    def _features(self, video: Tensor) -> TeacherFeatures:
        return TeacherFeatures(self.encoder(video, taps=self.taps), None, None)


class _Float8(NamedTuple):
    """What is left to do when the first clips come."""

    min_cosine: float
    compile: bool


def _cosines(taps: Sequence[int], expected: TeacherFeatures, found: TeacherFeatures) -> dict[str, float]:
    """Means over tokens for each tapped block, one after the other for the sake of memory, and of pooled vectors."""
    names = [f"block {tap}" for tap in taps]
    pairs = dict(zip(names, zip(expected.middle, found.middle, strict=True), strict=True))
    if expected.final is not None and found.final is not None:
        pairs["the pooled vector"] = (expected.final, found.final)
    return {
        name: functional.cosine_similarity(a.float(), b.float(), dim=-1).mean().item() for name, (a, b) in pairs.items()
    }


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)

"""Stage 1: a masked video encoder that learns from frozen teachers.

B clips, T frames, N patches of a clip, Nv visible ones, K and Km tapped blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2, check_taps, taps_from_end
from ivt2.nn.aligning import AligningDecoders, DecoderKind, FeatureDecoder
from ivt2.ops.masking import visible_indices


class StudentFeatures(NamedTuple):
    """What a student says in the spaces of its teachers, unit vectors unless its decoders do not normalise."""

    clip_middle: Float[Tensor, "K B 1+Nv clip_dim"] | None
    """Visible tokens of the aligned layers in increasing depth, the CLS token first; None without that branch."""
    clip_final: Float[Tensor, "B final_dim"] | None
    """The pooled vector."""
    mae: Float[Tensor, "Km B Nv mae_dim"] | None
    """Visible patches of the layers aligned with the second teacher; None where there is none."""


class StudentLayers(NamedTuple):
    """The same layer by layer and of any length: as much as a loss of directions needs."""

    clip_middle: Sequence[Float[Tensor, "B 1+Nv clip_dim"]] | None
    clip_final: Float[Tensor, "B final_dim"] | None
    mae: Sequence[Float[Tensor, "B Nv mae_dim"]] | None


class Stage1Student(nn.Module):
    """InternVideo2 in masked pre-training, and the small models in distillation, which have one teacher.

    Args:
        encoder: The video encoder.
        clip_decoders: Branch towards the teacher of tokens and of a pooled vector (InternVL, or a larger InternVideo2);
            None to learn from VideoMAE alone.
        mae_decoders: Branch towards VideoMAE; None in distillation.
        clip_taps: Blocks, counted from 0 and increasing, that the first branch decodes, one for each of its decoders;
            see ``ivt2.models.internvideo2.taps_from_end``.
        mae_taps: The same of the second branch.

    Raises:
        InputError: if the taps do not increase, lie outside the encoder, or are not as many as the decoders, or there
            is no branch at all.

    Source: InternVideo2 (arXiv:2403.15377) section 3.1; reference single_modality, PretrainInternVideo2 and its
        counterpart for distillation.
    """

    ENTRY_POINTS: ClassVar[tuple[str, ...]] = ("decode", "encode_video")
    """Methods besides ``forward`` that read parameters; a sharded engine gathers these for each."""

    def __init__(
        self,
        encoder: InternVideo2,
        clip_decoders: AligningDecoders | None,
        mae_decoders: AligningDecoders | None = None,
        *,
        clip_taps: Sequence[int] = (),
        mae_taps: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if clip_decoders is None and mae_decoders is None:
            raise InputError("the student has no decoders: give clip_decoders, mae_decoders or both")
        _check_decoded("clip_taps", clip_taps, clip_decoders, encoder.depth)
        _check_decoded("mae_taps", mae_taps, mae_decoders, encoder.depth)
        self.encoder = encoder
        self.clip_decoders = clip_decoders
        self.mae_decoders = mae_decoders
        self.clip_taps, self.mae_taps = tuple(clip_taps), tuple(mae_taps)

    def reset_parameters(self) -> None:
        """Start all weights anew; call it after ``to_empty`` where the model came from meta."""
        self.encoder.reset_parameters()
        for decoders in (self.clip_decoders, self.mae_decoders):
            if decoders is not None:
                decoders.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must not touch, besides biases and norms."""
        return {
            f"{part}.{name}"
            for part, module in self.named_children()
            if isinstance(module, InternVideo2 | AligningDecoders)
            for name in module.no_weight_decay()
        }

    def sharding_units(self) -> Iterator[nn.Module]:
        """Blocks that a sharded engine gathers one at a time."""
        yield from self.encoder.blocks

    def compile_parts(self) -> None:
        """Let ``torch.compile`` fuse each block, the pooling and each decoder from their next call on.

        Parts rather than the whole: blocks of equal shape share what was compiled, and a sharded engine can gather the
        weights of each when it is needed. Weights and their names stay as they are. Each shape of input is compiled for
        itself, so that training runs code made for its number of visible tokens.
        """
        parts: list[nn.Module] = [*self.encoder.blocks, self.encoder.clip_projector]
        parts += [part for part in self.modules() if isinstance(part, FeatureDecoder)]
        for part in parts:
            part.compile(dynamic=False)

    def forward(
        self,
        video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"],
        masked: Bool[Tensor, "B N"] | None = None,
        *,
        visible: Int64[Tensor, "B Nv"] | None = None,
    ) -> StudentFeatures:
        """Encode what is visible and decode it into the teachers' spaces.

        Args:
            video: RGB pixels, uint8 or already normalised.
            masked: True where a patch is hidden; the same number in every clip.
            visible: Positions of the patches that are not hidden, ascending; from ``masked`` where None, which has to
                be counted first.
        """
        layers = self._decode(video, masked, visible, scale=True)
        clip = None if layers.clip_middle is None else torch.stack(list(layers.clip_middle))
        mae = None if layers.mae is None else torch.stack(list(layers.mae))
        return StudentFeatures(clip, layers.clip_final, mae)

    def decode(
        self,
        video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"],
        masked: Bool[Tensor, "B N"] | None = None,
        *,
        visible: Int64[Tensor, "B Nv"] | None = None,
    ) -> StudentLayers:
        """What ``forward`` says, not scaled to unit length and not stacked, for losses that divide lengths out.

        Args:
            video: RGB pixels, uint8 or already normalised.
            masked: True where a patch is hidden; the same number in every clip.
            visible: Positions of the patches that are not hidden, ascending; from ``masked`` where None, which has to
                be counted first.
        """
        return self._decode(video, masked, visible, scale=False)

    def _decode(self, video: Tensor, masked: Tensor | None, visible: Tensor | None, *, scale: bool) -> StudentLayers:
        if visible is None and masked is not None:
            visible = visible_indices(masked)
        taps = sorted({*self.clip_taps, *self.mae_taps})
        _, pooled, intermediates = self.encoder(video, taps=taps, visible=visible)
        streams = dict(zip(taps, intermediates, strict=True))
        image = video.shape[1] == 1
        said = StudentLayers(None, None, None)
        if self.clip_decoders is not None:
            layers = [streams[tap] for tap in self.clip_taps]
            clip, final = self.clip_decoders.decode(layers, pooled, image=image, visible=visible, scale=scale)
            said = said._replace(clip_middle=clip, clip_final=final)
        if self.mae_decoders is not None:
            layers = [streams[tap] for tap in self.mae_taps]
            mae, _ = self.mae_decoders.decode(layers, pooled, image=image, visible=visible, scale=scale)
            said = said._replace(mae=mae)
        return said

    def encode_video(self, video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"]) -> Float[Tensor, "B D"]:
        """Mean of the last block's patch tokens of whole clips, before any decoder: what a probe is given.

        All teachers train the tokens. The pooled vector, which the first one alone trains, is a mean over frames in
        which no motion can be seen.

        Args:
            video: RGB pixels, uint8 or already normalised.

        Source: linear classifiers of masked autoencoders are given the mean token, He et al. (arXiv:2111.06377).
        """
        tokens: Tensor = self.encoder(video).tokens
        return tokens[:, 1:].mean(dim=1)


@dataclass(frozen=True)
class Branch:
    """Towards one teacher: what a student is to decode.

    Args:
        teacher_dim: Width of the teacher's tokens.
        num_layers: Number of aligned layers.
        interval: Step from one aligned block of the student to the next, counted from its last block backwards.
        taps: The aligned blocks themselves, counted from 0 and increasing; takes the place of ``interval``.
        decoder: Each decoder is one linear layer, or a perceptron of two.
        final_dim: Width of the teacher's pooled vector; 0 where the teacher has none or it is not to be learnt.
        cls_token: Whether the teacher has a CLS token.

    Raises:
        InputError: if the taps are not as many as the layers.
    """

    teacher_dim: int
    num_layers: int
    interval: float = 1.0
    taps: Sequence[int] | None = None
    decoder: DecoderKind = "linear"
    final_dim: int = 0
    cls_token: bool = True

    def __post_init__(self) -> None:
        if self.taps is not None and len(self.taps) != self.num_layers:
            raise InputError(f"taps={list(self.taps)} are not num_layers={self.num_layers} blocks: give one for each")

    def taps_of(self, depth: int) -> list[int]:
        """Aligned blocks of a student of so many blocks.

        Args:
            depth: Blocks of the student.
        """
        return taps_from_end(depth, self.num_layers, self.interval) if self.taps is None else list(self.taps)

    def decoders(self, encoder: InternVideo2) -> AligningDecoders:
        """Decoders that fit the student's encoder.

        Args:
            encoder: The video encoder of the student.
        """
        return AligningDecoders(
            embed_dim=encoder.embed_dim,
            pooled_dim=encoder.pooled_dim,
            num_layers=self.num_layers,
            teacher_dim=self.teacher_dim,
            final_dim=self.final_dim,
            num_frames=encoder.grid_frames,
            grid_size=encoder.grid_size,
            decoder=self.decoder,
            cls_token=self.cls_token,
            position=encoder.position,
            # Patches without a CLS token have no table for images in any release.
            separate_image_position=encoder.separate_image_position and self.cls_token,
        )


def build_student(
    encoder: InternVideo2, *, clip: Branch | None = None, mae: Branch | None = None, compile: bool = False
) -> Stage1Student:
    """A student with decoders that fit its encoder.

    Args:
        encoder: The video encoder.
        clip: Towards the teacher of tokens and of a pooled vector.
        mae: Towards VideoMAE.
        compile: Whether its parts are compiled, see ``Stage1Student.compile_parts``; the first steps then take
            minutes, and on CPUs a C++ compiler is needed.

    Raises:
        InputError: if there is no branch, or the encoder has too few blocks for one.
    """
    student = Stage1Student(
        encoder,
        None if clip is None else clip.decoders(encoder),
        None if mae is None else mae.decoders(encoder),
        clip_taps=() if clip is None else clip.taps_of(encoder.depth),
        mae_taps=() if mae is None else mae.taps_of(encoder.depth),
    )
    if compile:
        student.compile_parts()
    return student


def _check_decoded(name: str, taps: Sequence[int], decoders: AligningDecoders | None, depth: int) -> None:
    check_taps(name, taps, depth)
    num_decoders = 0 if decoders is None else len(decoders.decoders)
    if len(taps) != num_decoders:
        raise InputError(f"{name}={list(taps)} are {len(taps)} blocks for {num_decoders} decoders: give one for each")

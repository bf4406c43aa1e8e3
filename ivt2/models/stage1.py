"""Stage 1: a masked video encoder that learns from frozen teachers.

B clips, T frames, N patches of a clip, Nv visible ones, K and Km tapped blocks.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2, check_taps
from ivt2.nn.aligning import AligningDecoders


class StudentFeatures(NamedTuple):
    """What a student says in the spaces of its teachers, unit vectors unless its decoders do not normalise."""

    clip_middle: Float[Tensor, "K B 1+Nv clip_dim"]
    """Visible tokens of the aligned layers in increasing depth, the CLS token first."""
    clip_final: Float[Tensor, "B final_dim"]
    """The pooled vector."""
    mae: Float[Tensor, "Km B Nv mae_dim"] | None
    """Visible patches of the layers aligned with the second teacher; None where there is none."""


class Stage1Student(nn.Module):
    """InternVideo2 in masked pre-training, and the small models in distillation, which have one teacher.

    Args:
        encoder: The video encoder.
        clip_decoders: Branch towards the teacher of tokens and of a pooled vector (InternVL, or a larger InternVideo2).
        mae_decoders: Branch towards VideoMAE; None in distillation.
        clip_taps: Blocks, counted from 0 and increasing, that the first branch decodes, one for each of its decoders;
            see ``ivt2.models.internvideo2.taps_from_end``.
        mae_taps: The same of the second branch.

    Raises:
        InputError: if the taps do not increase, lie outside the encoder, or are not as many as the decoders.

    Source: InternVideo2 (arXiv:2403.15377) section 3.1; reference single_modality, PretrainInternVideo2 and its
        counterpart for distillation.
    """

    def __init__(
        self,
        encoder: InternVideo2,
        clip_decoders: AligningDecoders,
        mae_decoders: AligningDecoders | None = None,
        *,
        clip_taps: Sequence[int],
        mae_taps: Sequence[int] = (),
    ) -> None:
        super().__init__()
        _check_decoded("clip_taps", clip_taps, clip_decoders, encoder.depth)
        _check_decoded("mae_taps", mae_taps, mae_decoders, encoder.depth)
        self.encoder = encoder
        self.clip_decoders = clip_decoders
        self.mae_decoders = mae_decoders
        self.clip_taps, self.mae_taps = tuple(clip_taps), tuple(mae_taps)

    def reset_parameters(self) -> None:
        """Start all weights anew; call it after ``to_empty`` where the model came from meta."""
        self.encoder.reset_parameters()
        self.clip_decoders.reset_parameters()
        if self.mae_decoders is not None:
            self.mae_decoders.reset_parameters()

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

    def forward(
        self,
        video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"],
        masked: Bool[Tensor, "B N"] | None = None,
    ) -> StudentFeatures:
        """Encode what is visible and decode it into the teachers' spaces.

        Args:
            video: RGB pixels, uint8 or already normalised.
            masked: True where a patch is hidden; the same number in every clip.
        """
        taps = sorted({*self.clip_taps, *self.mae_taps})
        _, pooled, intermediates = self.encoder(video, masked, taps)
        streams = dict(zip(taps, intermediates, strict=True))
        image = video.shape[1] == 1
        clip = self.clip_decoders(_stack(streams, self.clip_taps), pooled, image=image, masked=masked)
        if self.mae_decoders is None:
            return StudentFeatures(clip.middle, clip.final, None)
        mae = self.mae_decoders(_stack(streams, self.mae_taps), pooled, image=image, masked=masked)
        return StudentFeatures(clip.middle, clip.final, mae.middle)


def _stack(streams: dict[int, Tensor], taps: Sequence[int]) -> Tensor:
    return torch.stack([streams[tap] for tap in taps])


def _check_decoded(name: str, taps: Sequence[int], decoders: AligningDecoders | None, depth: int) -> None:
    check_taps(name, taps, depth)
    num_decoders = 0 if decoders is None else len(decoders.decoders)
    if len(taps) != num_decoders:
        raise InputError(f"{name}={list(taps)} are {len(taps)} blocks for {num_decoders} decoders: give one for each")

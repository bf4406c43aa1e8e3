"""Mixup and CutMix of a batch on the device: one mixture for the whole batch, partners by reversed order."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ivt2.ops.erasing import Box
from ivt2.ops.random import Stream, derive_seed


class Mix(NamedTuple):
    """How clip i is mixed with clip B - 1 - i."""

    share: float
    """Part of the pixels, and of the target, that stays clip i's."""
    box: Box | None
    """Pixels that come from the partner (CutMix); None blends all pixels (Mixup)."""


def draw_mix(
    seed: Int64[Tensor, "B"],
    height: int,
    width: int,
    *,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    probability: float = 1.0,
    cutmix_probability: float = 0.5,
) -> Mix:
    """Draw the mixture of a batch from the seeds of all its samples.

    ``share ~ Beta(alpha, alpha)``. The box of CutMix has sides ``sqrt(1 - share)`` of the frame's and a centre drawn
    over the whole frame; what lies outside is cut off, and the share is corrected to the area that is left.

    Args:
        seed: Key of each sample, as in ``batch["seed"]``; copied to the host.
        height: Rows of a frame.
        width: Columns of a frame.
        mixup_alpha: Shape of Mixup's distribution; positive.
        cutmix_alpha: Shape of CutMix's; positive.
        probability: Of a mixture at all.
        cutmix_probability: Of that mixture to be CutMix rather than Mixup.

    Source: stage 1 fine-tuning and probing. Zhang et al., "mixup", 2018; Yun et al., "CutMix", 2019.
    """
    generator = np.random.default_rng(derive_seed(*seed.tolist(), Stream.MIXUP))
    if generator.uniform() >= probability:
        return Mix(1.0, None)
    if generator.uniform() >= cutmix_probability:
        return Mix(float(generator.beta(mixup_alpha, mixup_alpha)), None)
    side = (1.0 - generator.beta(cutmix_alpha, cutmix_alpha)) ** 0.5
    top, rows = _span(height, int(height * side), generator)
    left, columns = _span(width, int(width * side), generator)
    return Mix(1.0 - rows * columns / (height * width), Box(top, left, rows, columns))


def mix_clips(video: Float[Tensor, "B T C H W"], mix: Mix) -> Float[Tensor, "B T C H W"]:
    """Mix every clip with its partner: ``share * clip + (1 - share) * partner``, or the box of the partner pasted in.

    Args:
        video: Normalised pixels. With an odd number of clips, as when one was skipped, the middle one stays as it is.
        mix: What ``draw_mix`` drew.

    Returns:
        A new tensor.
    """
    partner = video.flip(0)
    if mix.box is None:
        return torch.lerp(partner, video, mix.share)
    mixed = video.clone()
    mixed[(..., *mix.box.region)] = partner[(..., *mix.box.region)]
    return mixed


def mix_targets(
    labels: Int64[Tensor, "B"], mix: Mix, num_classes: int, *, smoothing: float = 0.1
) -> Float[Tensor, "B num_classes"]:
    """Distributions over the classes for the mixed clips, as cross-entropy takes them.

    A label's own distribution is ``1 - smoothing + smoothing / num_classes`` at the label, ``smoothing / num_classes``
    elsewhere; they are mixed as the clips are.

    Args:
        labels: Class of each clip.
        mix: What the clips were mixed with; ``Mix(1.0, None)`` smooths alone.
        num_classes: Number of classes.
        smoothing: Part of the mass that is spread over all classes, in [0, 1].
    """
    sharp = torch.nn.functional.one_hot(labels, num_classes).float()
    smooth = sharp * (1.0 - smoothing) + smoothing / num_classes
    return torch.lerp(smooth.flip(0), smooth, mix.share)


def _span(length: int, size: int, generator: np.random.Generator) -> tuple[int, int]:
    """First pixel and extent of ``size`` pixels around a random centre, within the frame."""
    center = int(generator.integers(0, length))
    first, end = max(center - size // 2, 0), min(center + size // 2, length)
    return first, end - first

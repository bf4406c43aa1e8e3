"""Learning-rate schedules, as factors on each group's own rate."""

import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ivt2.errors import InputError


@dataclass(frozen=True)
class WarmupCosine:
    """Factor of the learning rate at a step.

    Linear warm-up ``step / warmup_steps``, then ``(1 + cos(pi p)) / 2`` where p runs from 0 to 1 at ``total_steps``;
    never below ``min_ratio``, in the warm-up neither. A class rather than a lambda: its numbers enter the schedule's
    state, so a checkpoint holds them.

    Args:
        warmup_steps: optimizer steps of the warm-up.
        total_steps: optimizer steps of the training, warm-up included.
        min_ratio: least factor, in [0, 1].
        after_end: factor beyond ``total_steps``: ``hold`` the least one, or go on along the cosine, which ``rebound``
            to 1. The reference does the latter, by accident; its training ends at ``total_steps``.

    Source: reference multi_modality, schedule of stage 2 and CLIP (min_ratio 0.01).
    """

    warmup_steps: int
    total_steps: int
    min_ratio: float
    after_end: Literal["hold", "rebound"] = "hold"

    def __call__(self, step: int) -> float:
        """Factor at ``step``, counted from 0."""
        if step < self.warmup_steps:
            return max(self.min_ratio, step / self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        if self.after_end == "hold":
            progress = min(1.0, progress)
        return max(self.min_ratio, (1 + math.cos(math.pi * progress)) / 2)


def warmup_cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.0,
    min_ratio: float = 0.01,
    after_end: Literal["hold", "rebound"] = "hold",
) -> LambdaLR:
    """Schedule that multiplies the rate of every group by :class:`WarmupCosine`, to be stepped once per step.

    Args:
        optimizer: its groups' current rates are the peak rates.
        total_steps: optimizer steps of the training, warm-up included.
        warmup_steps: optimizer steps of the warm-up.
        warmup_ratio: the same as a share of ``total_steps``, in [0, 1] (recipes give it in epochs: 1 of 10 is 0.1).
        min_ratio: least factor, in [0, 1].
        after_end: see :class:`WarmupCosine`.

    Raises:
        InputError: if the warm-up is given twice, does not fit into ``total_steps``, or a ratio is outside [0, 1].
    """
    for name, ratio in (("warmup_ratio", warmup_ratio), ("min_ratio", min_ratio)):
        if not 0 <= ratio <= 1:
            raise InputError(f"{name}={ratio} is outside [0, 1]: give a share")
    if warmup_steps and warmup_ratio:
        raise InputError("warmup_steps and warmup_ratio are both set: set one of them to 0")
    if warmup_ratio:
        warmup_steps = int(warmup_ratio * total_steps)
    if not 0 <= warmup_steps <= total_steps:
        raise InputError(f"warmup_steps={warmup_steps} is outside [0, total_steps={total_steps}]: shorten the warm-up")
    return LambdaLR(optimizer, WarmupCosine(warmup_steps, total_steps, min_ratio, after_end))

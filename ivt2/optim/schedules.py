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


@dataclass(frozen=True)
class InclusiveWarmupCosine:
    """Factor of a learning rate, or of a weight decay, at a step: the rule of stage 1.

    The warm-up runs in equal parts from ``start_ratio``, at step 0, to 1, at its last step, which the first step after
    it repeats: i steps on, of n, the factor is ``final_ratio + (1 - final_ratio) * (1 + cos(pi i / n)) / 2``. So the
    last step of the training stands one part above ``final_ratio``, which is held beyond it.

    Args:
        warmup_steps: optimizer steps of the warm-up; a single one stands at ``start_ratio``.
        total_steps: optimizer steps of the training, warm-up included.
        start_ratio: factor of the first step.
        final_ratio: factor that the cosine comes down to, or, above 1, up to.

    Source: reference single_modality, schedule of pre-training, fine-tuning and distillation.
    """

    warmup_steps: int
    total_steps: int
    start_ratio: float
    final_ratio: float

    def __call__(self, step: int) -> float:
        """Factor at ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.start_ratio + (1 - self.start_ratio) * step / max(1, self.warmup_steps - 1)
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.final_ratio + (1 - self.final_ratio) * (1 + math.cos(math.pi * progress)) / 2


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
    _check_ratio("min_ratio", min_ratio)
    warmup_steps = _warmup_steps(warmup_steps, warmup_ratio, total_steps)
    _scale_rates(optimizer)
    return LambdaLR(optimizer, WarmupCosine(warmup_steps, total_steps, min_ratio, after_end))


def inclusive_warmup_cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.0,
    start_lr: float = 0.0,
    final_lr: float = 0.0,
    global_batch_size: int | None = None,
) -> LambdaLR:
    """Schedule that multiplies the rate of every group by :class:`InclusiveWarmupCosine`, stepped once per step.

    The three rates (that of the optimizer, ``start_lr``, ``final_lr``) are for 256 clips a step where
    ``global_batch_size`` is given. Groups with a rate of their own keep their ratio to the optimizer's throughout.

    Args:
        optimizer: its rates are the peak rates, before :func:`scaled_learning_rate`.
        total_steps: optimizer steps of the training, warm-up included.
        warmup_steps: optimizer steps of the warm-up.
        warmup_ratio: the same as a share of ``total_steps``, in [0, 1], rounded down to a step.
        start_lr: rate of the first step.
        final_lr: rate at the end.
        global_batch_size: clips of an optimizer step, over all ranks and accumulated batches; None takes the rates as
            they are.

    Raises:
        InputError: if the warm-up is given twice or does not fit into ``total_steps``, or a number is out of range.
    """
    warmup_steps = _warmup_steps(warmup_steps, warmup_ratio, total_steps)
    peak = float(optimizer.defaults["lr"])
    if not peak > 0:
        raise InputError(f"optimizer.lr={peak}: the schedule divides by it; give a positive rate")
    for name, rate in (("start_lr", start_lr), ("final_lr", final_lr)):
        if not 0 <= rate < math.inf:
            raise InputError(f"{name}={rate} is no learning rate: give 0 or more")
    _scale_rates(optimizer, 1.0 if global_batch_size is None else scaled_learning_rate(1.0, global_batch_size))
    return LambdaLR(optimizer, InclusiveWarmupCosine(warmup_steps, total_steps, start_lr / peak, final_lr / peak))


def scaled_learning_rate(rate: float, global_batch_size: int) -> float:
    """Rate for a batch, ``rate * global_batch_size / 256``, from one that was chosen for 256 clips.

    Args:
        rate: learning rate at 256 clips a step.
        global_batch_size: clips of an optimizer step, over all ranks and accumulated batches.

    Raises:
        InputError: if the batch is not positive.

    Source: reference single_modality, all recipes (the linear scaling rule of arXiv:1706.02677).
    """
    if global_batch_size <= 0:
        raise InputError(f"global_batch_size={global_batch_size}: give a positive number of clips")
    return rate * global_batch_size / 256


def _check_ratio(name: str, ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise InputError(f"{name}={ratio} is outside [0, 1]: give a share")


def _warmup_steps(steps: int, ratio: float, total_steps: int) -> int:
    """Length of the warm-up, which is given as steps or as a share of the training, rounded down."""
    _check_ratio("warmup_ratio", ratio)
    if steps and ratio:
        raise InputError("warmup_steps and warmup_ratio are both set: set one of them to 0")
    if ratio:
        steps = int(ratio * total_steps)
    if not 0 <= steps <= total_steps:
        raise InputError(f"warmup_steps={steps} is outside [0, total_steps={total_steps}]: shorten the warm-up")
    return steps


def _scale_rates(optimizer: Optimizer, scale: float = 1.0) -> None:
    """Multiply the rates of all groups, and each by the ``lr_scale`` of its layer, which is thereby used up."""
    for group in optimizer.param_groups:
        group["lr"] *= scale * group.pop("lr_scale", 1.0)

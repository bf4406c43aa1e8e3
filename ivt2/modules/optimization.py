"""What every module hands to Lightning as its optimizer: groups, and a schedule that moves with each step."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

MakeOptimizer: TypeAlias = Callable[[Iterable[Any]], Optimizer]
"""Makes the optimizer from parameter groups."""
MakeSchedule: TypeAlias = Callable[..., LRScheduler]
"""Makes the schedule from the optimizer and ``total_steps``."""


def optimizer_with_schedule(
    groups: Iterable[Any], *, optimizer: MakeOptimizer, schedule: MakeSchedule, trainer: Trainer
) -> OptimizerLRSchedulerConfig:
    """What ``configure_optimizers`` returns.

    Args:
        groups: parameter groups, see :func:`ivt2.optim.parameter_groups.parameter_groups`.
        optimizer: takes the groups.
        schedule: is stepped with the optimizer, over all steps of the fit.
        trainer: of the fit.
    """
    made = optimizer(groups)
    scheduler = schedule(made, total_steps=int(trainer.estimated_stepping_batches))
    return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

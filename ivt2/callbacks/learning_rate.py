"""Learning rates on the dashboard."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from typing_extensions import override


class LearningRate(LearningRateMonitor):
    """Lightning's monitor, once per log interval; quiet where nothing is logged, which Lightning's refuses."""

    def __init__(self) -> None:
        super().__init__(logging_interval="step")

    @override
    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Find the names of the schedules."""
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)

    @override
    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Log the learning rate that this step uses."""
        if trainer.loggers:
            super().on_train_batch_start(trainer, *args, **kwargs)

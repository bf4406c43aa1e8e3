"""Rate and time left: a live bar in a terminal, plain lines from time to time in a file or a pipe."""

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console
from typing_extensions import override

_READ_S = 0.5


class Progress(RichProgressBar):
    """Lightning's bar, whose live display shows nothing outside a terminal; there this writes lines instead.

    Args:
        interval_s: Seconds between two lines; the first and the last step always have one.
    """

    def __init__(self, *, interval_s: float = 30.0) -> None:
        super().__init__(refresh_rate=4)
        self.interval_s = interval_s
        self._lines = False
        self._written_s = 0.0
        self._first: tuple[int, float] | None = None
        self._metrics: dict[str, Any] = {}
        self._read_s = 0.0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose between the bar and the lines."""
        super().setup(trainer, pl_module, stage)
        self._lines = trainer.is_global_zero and not get_console().is_terminal
        if self._lines:
            self.disable()

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Values beside the bar, without the number of the run; read from the device at most twice a second."""
        now = time.monotonic()
        if now - self._read_s >= _READ_S:
            self._metrics, self._read_s = super().get_metrics(trainer, pl_module), now
            self._metrics.pop("v_num", None)
        return dict(self._metrics)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock that the rate is measured with."""
        super().on_train_start(trainer, pl_module)
        self._first, self._written_s = None, 0.0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line when it is time."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step, now = trainer.global_step, time.monotonic()
        first_step, first_s = self._first = self._first or (step, now)
        rate = (step - first_step) / (now - first_s) if now > first_s else 0.0
        total = trainer.estimated_stepping_batches if self._lines else 0
        if self._due(is_last=step == total):
            numbers = [f"{name} {value:.4g}" for name, value in _plain(self.get_metrics(trainer, pl_module))]
            self._write(f"epoch {trainer.current_epoch}", *progress_words(step, total, rate), *numbers)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a line when it is time."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if self._due(is_last=False):
            self.has_dataloader_changed(dataloader_idx)  # the bar, being off, does not keep track
            self._write(f"validation batch {batch_idx + 1}/{self.total_val_batches_current_dataloader}")

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a line when it is time."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if self._due(is_last=False):
            self.has_dataloader_changed(dataloader_idx)  # the bar, being off, does not keep track
            self._write(f"test batch {batch_idx + 1}/{self.total_test_batches_current_dataloader}")

    def _due(self, *, is_last: bool) -> bool:
        return self._lines and (is_last or self._written_s == 0 or time.monotonic() - self._written_s > self.interval_s)

    def _write(self, *words: str) -> None:
        self._written_s = time.monotonic()
        get_console().print("  ".join(words), markup=False, highlight=False, soft_wrap=True)


def progress_words(step: int, total: float, rate: float) -> list[str]:
    """Step, rate and time left as words.

    Args:
        step: Optimizer steps taken.
        total: Optimizer steps of the whole training; infinity where it has no end.
        rate: Steps per second; 0 while it is not known.
    """
    if total == float("inf"):
        return [f"step {step}", f"{rate:.2f} steps/s"]
    left = "-:--:--" if rate == 0 else str(timedelta(seconds=int((total - step) / rate)))
    return [f"step {step}/{int(total)}", f"{rate:.2f} steps/s", f"{left} left"]


def _plain(metrics: dict[str, Any]) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in metrics.items() if not isinstance(value, str | dict)]

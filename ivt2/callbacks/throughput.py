"""Speed of training and the memory that it needs."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from ivt2.callbacks.environment import peak_memory_gb


class Throughput(Callback):
    """Logs ``perf/...`` at each log interval, as means over the steps since the last one.

    ``clips_per_s`` counts all ranks, taking this rank's batches for theirs; ``step_s`` is a training step,
    ``data_wait_ratio`` the share of time in [0, 1] spent between steps, waiting for data. Time in which a checkpoint
    was saved or the network validated or probed counts for neither. A GPU works on after a step has returned, so one
    step may be off, not their mean.
    """

    def __init__(self) -> None:
        self._clips = 0
        self._steps = 0
        self._step_s = 0.0
        self._wait_s = 0.0
        self._started_s: float | None = None
        self._ended_s: float | None = None
        self._logged_step = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._ended_s = None
        self._logged_step = trainer.global_step
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The data have come."""
        self._started_s = time.perf_counter()
        if self._ended_s is not None:
            self._wait_s += self._started_s - self._ended_s

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the step, and log where it is due."""
        self._ended_s = time.perf_counter()
        if self._started_s is None:
            return
        self._step_s += self._ended_s - self._started_s
        self._steps += 1
        self._clips += num_clips(batch)
        step = trainer.global_step
        if step % trainer.log_every_n_steps == 0 and step != self._logged_step:  # type: ignore[attr-defined]
            self._log(trainer, pl_module)
            self._logged_step = step

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saving is not waiting for data."""
        self.pause()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nor is validating."""
        self.pause()

    def pause(self) -> None:
        """Count the time until the next batch neither as a step nor as waiting; for callbacks listed after this one."""
        self._ended_s = None

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total_s = self._step_s + self._wait_s
        values = {
            "perf/clips_per_s": self._clips * trainer.world_size / total_s,
            "perf/step_s": self._step_s / self._steps,
            "perf/data_wait_ratio": self._wait_s / total_s,
            **{f"perf/{name}": value for name, value in peak_memory_gb().items()},
        }
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        self._clips, self._steps, self._step_s, self._wait_s = 0, 0, 0.0, 0.0


def num_clips(batch: Any) -> int:
    """Clips of a batch: length of its ``video``, or of the first tensor in it."""
    if isinstance(batch, Mapping) and "video" in batch:
        return len(batch["video"])
    if isinstance(batch, Tensor):
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((len(part) for part in parts if isinstance(part, Tensor) and part.ndim), 0)

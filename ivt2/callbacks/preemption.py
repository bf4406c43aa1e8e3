"""A scheduler's signal ends the run between two steps, with a checkpoint to go on from."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

EXIT_STATUS = 75
"""EX_TEMPFAIL: the scheduler should start the run again."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption(Callback):
    """On SIGTERM or SIGUSR1 finishes the step, saves ``last.ckpt`` and leaves with status 75.

    The signal only sets a flag, on which the ranks then agree: a handler that talks to other ranks hangs when all of
    them are signalled at once. A second signal acts at once, as if there were no handler. List it after callbacks that
    change the weights at the end of a step.

    Args:
        folder: Folder of the checkpoint, that of ``ModelCheckpoint``.
        poll_every_n_steps: Steps between two agreements of several ranks; one process looks after every step.
    """

    def __init__(self, folder: str | Path, *, poll_every_n_steps: int = 10) -> None:
        self.folder = Path(folder)
        self.poll_every_n_steps = poll_every_n_steps
        self._signalled = False
        self._replaced: dict[signal.Signals, Any] = {}
        self._polled_step = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; signal handlers exist in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._replaced = {number: signal.signal(number, self._note) for number in SIGNALS}

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave where any rank was signalled.

        Raises:
            SystemExit: With status 75.
        """
        if not self._any_signalled(trainer):
            return
        path = str(self.folder / "last.ckpt")
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.last_model_path = path  # or the resumed run would count its next one as last-v1
        trainer.save_checkpoint(path, weights_only=False)
        rank_zero_info(f"stopped by a signal at step {trainer.global_step}; resume with ckpt_path=last")
        raise SystemExit(EXIT_STATUS)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back, before Lightning does so itself."""
        self._stop_listening()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signalled = True
        signal.signal(number, signal.SIG_DFL)

    def _any_signalled(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return self._signalled
        step = trainer.global_step
        if step % self.poll_every_n_steps or step == self._polled_step:
            return False
        self._polled_step = step
        flag = torch.tensor(float(self._signalled), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(flag, reduce_op="sum") > 0)

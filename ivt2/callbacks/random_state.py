"""Random generators in the checkpoint, so that a resumed run draws what the uninterrupted one would have drawn."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from ivt2.ops.distributed import gather_objects

KEY = "random_state"


class RandomState(Callback):
    """Saves the generators of every rank and gives them back in the first training step after a resume.

    They are given back in ``on_train_batch_start``, not earlier, because building a loader's iterator draws from
    them. For the same reason the generators are put back after each validation inside a fit and at the first step of
    every epoch: neither validating nor a new iterator may move what training draws.
    """

    def __init__(self) -> None:
        self._after_step: dict[str, Any] | None = None
        self._restore = False

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Collect the generators of all ranks (every rank comes here, rank 0 writes)."""
        checkpoint[KEY] = gather_objects(capture())

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's generators for the first training step."""
        if trainer.state.fn != "fit":
            return
        states = checkpoint.get(KEY, [])
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint has random generators of {len(states)} ranks and this run has {trainer.world_size}: "
                "dropout will differ from an uninterrupted run"
            )
            return
        self._after_step = states[trainer.global_rank]
        self._restore = True

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undo what building the epoch's iterator draws."""
        self._restore = self._after_step is not None

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the generators back where it is due."""
        if self._restore and self._after_step is not None:
            restore(self._after_step)
        self._restore = False

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember where training stands."""
        self._after_step = capture()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undo what validating inside a fit has drawn, before a checkpoint is written."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._after_step is not None:
            restore(self._after_step)


def capture() -> dict[str, Any]:
    """State of the generators of Python, numpy, torch and this process's GPU, as plain data and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(name), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
    }


def restore(state: dict[str, Any]) -> None:
    """Set the generators to a state that ``capture`` returned; the GPU's only where there is one on both sides."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(state["cuda"])

"""Samples that could not be used, on the dashboard and as a table at the end."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from typing_extensions import override

from ivt2.callbacks.tracking import safe_name
from ivt2.data.ledger import Ledger, table


class SkippedSamples(Callback):
    """Logs ``data/skipped/<reason>``, counts of all ranks so far, from the datamodule's ``ledger``.

    Quiet where the datamodule keeps no ledger or nothing was skipped.
    """

    def __init__(self) -> None:
        self._logged_step = -1

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counts at each log interval."""
        step = trainer.global_step
        if step % trainer.log_every_n_steps == 0 and step != self._logged_step:  # type: ignore[attr-defined]
            self._logged_step = step
            counts = _total(trainer).by_reason()
            values = {f"data/skipped/{safe_name(reason)}": float(count) for reason, count in counts.items()}
            pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table of the fit."""
        _show(trainer)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table, with what testing added."""
        _show(trainer)


def _total(trainer: Trainer) -> Ledger:
    """Accounts of all ranks in one ledger (every rank must call)."""
    own = getattr(trainer.datamodule, "ledger", None)  # type: ignore[attr-defined]
    total = Ledger(1.0)
    states: list[Any] = [None if own is None else own.state_dict()]
    if trainer.world_size > 1:
        states, mine = [None] * trainer.world_size, states[0]
        torch.distributed.all_gather_object(states, mine)
    for state in states:
        if state is not None:
            total.merge(state)
    return total


def _show(trainer: Trainer) -> None:
    total = _total(trainer)
    if trainer.is_global_zero and total.skipped:
        get_console().print(table(total))

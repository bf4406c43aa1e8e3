"""Samples that could not be used: on the dashboard, as a list of every one, and as a table at the end."""

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from typing_extensions import override

from ivt2.batch import Skipped
from ivt2.callbacks.skipped_rows import SkippedRows
from ivt2.callbacks.tracking import mlflow_run, safe_name
from ivt2.data.ledger import Ledger, table
from ivt2.ops.distributed import gather_objects

KEY = "skipped_rows"

_NAMES = {"fit": "skipped", "validate": "skipped-validate", "test": "skipped-test"}
"""Files of each entry point: evaluating later must not touch what training has come across."""


class SkippedSamples(Callback):
    """Reports what the datamodule's ``ledger`` enters.

    Logs ``data/skipped/<reason>`` and ``data/padded_sounds``, counts of all ranks so far. Writes each sample, when it
    is skipped, as a line of ``<folder>/skipped.jsonl`` (``skipped-validate.jsonl``, ``skipped-test.jsonl``): ``stage``,
    ``epoch`` and ``step`` (optimizer steps done before), ``source``, ``shard``, ``key``, ``reason``, ``rank``, ``row``.
    A resumed fit cuts the lines written after its checkpoint. At the end the lines of all ranks stand in one file,
    which also goes to the MLflow run, and a table shows the counts.

    Quiet, and without files, where the datamodule keeps no ledger or nothing was skipped.

    Args:
        folder: Folder of the run, shared by all ranks.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._logged_step = -1
        self._rows: SkippedRows | None = None
        self._kept: list[int] = []
        self._begun = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to the ledger."""
        self._kept, self._begun, self._rows = [], False, None
        ledger = _ledger(trainer)
        if ledger is None or trainer.fast_dev_run or trainer.state.fn not in _NAMES:  # type: ignore[attr-defined]
            return
        self._rows = SkippedRows(self.folder, _NAMES[trainer.state.fn], trainer.global_rank)
        ledger.listener = partial(self._write, trainer, self._rows)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over how many rows there were."""
        if trainer.state.fn == "fit":
            self._kept = [int(count) for count in checkpoint.get(KEY, [])]

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note how many rows each rank has written (every rank comes here, rank 0 writes)."""
        if self._rows is not None:
            self._begin(trainer, self._rows)
            counts = gather_objects(self._rows.num_rows)
            checkpoint[KEY] = [*counts, *self._kept[len(counts) :]]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut what the checkpoint does not know of."""
        if self._rows is not None:
            self._begin(trainer, self._rows)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counts at each log interval."""
        step = trainer.global_step
        if step % trainer.log_every_n_steps == 0 and step != self._logged_step:  # type: ignore[attr-defined]
            self._logged_step = step
            total = _total(trainer)
            counts = total.by_reason()
            values = {f"data/skipped/{safe_name(reason)}": float(count) for reason, count in counts.items()}
            if total.padded_sounds:
                values["data/padded_sounds"] = float(total.padded_sounds)
            pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the list together and show the table of the fit."""
        self._finish(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do so after ``validate``; what fit validates is shown at its end."""
        if trainer.state.fn == "validate":
            self._finish(trainer)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do so after ``test``, with what testing added."""
        self._finish(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no more."""
        _stop_listening(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Listen no more; Lightning tears nothing down after an exception."""
        _stop_listening(trainer)

    def _begin(self, trainer: Trainer, rows: SkippedRows) -> None:
        if not self._begun:
            self._begun = True
            rows.begin(self._kept, trainer.world_size)

    def _write(self, trainer: Trainer, rows: SkippedRows, skipped: Skipped) -> None:
        self._begin(trainer, rows)
        stage = trainer.state.stage
        rows.append({
            "stage": None if stage is None else stage.value,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            **{name: getattr(skipped, name) for name in ("source", "shard", "key", "reason")},
        })

    def _finish(self, trainer: Trainer) -> None:
        rows = self._rows
        if rows is not None:
            self._begin(trainer, rows)
        total = _total(trainer)  # when the counts of all ranks are here, so are their rows
        if trainer.is_global_zero:
            if total.skipped:
                get_console().print(table(total))
            if rows is not None:
                _publish(trainer, rows)
        trainer.strategy.barrier("skipped_rows")  # the next entry point may write


def _publish(trainer: Trainer, rows: SkippedRows) -> None:
    path, run = rows.put_together(), mlflow_run(trainer)
    if path is not None and run is not None:
        run.client.log_artifact(run.run_id, str(path))


def _ledger(trainer: Trainer) -> Ledger | None:
    return getattr(trainer.datamodule, "ledger", None)  # type: ignore[attr-defined]


def _stop_listening(trainer: Trainer) -> None:
    ledger = _ledger(trainer)
    if ledger is not None:
        ledger.listener = None


def _total(trainer: Trainer) -> Ledger:
    """Accounts of all ranks in one ledger (every rank must call)."""
    own = _ledger(trainer)
    total = Ledger(1.0)
    for state in gather_objects(None if own is None else own.state_dict()):
        if state is not None:
            total.merge(state)
    return total

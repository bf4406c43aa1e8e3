"""The MLflow run behind a Trainer, where there is one."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.tracking import MlflowClient


class MlflowRun(NamedTuple):
    """One run and the client that writes to it."""

    client: "MlflowClient"
    run_id: str
    tracking_uri: str


def mlflow_run(trainer: Trainer) -> MlflowRun | None:
    """The run of the Trainer's MLflow logger; None on other ranks than the first and without such a logger.

    Opening it creates the run where it does not exist yet.
    """
    if not trainer.is_global_zero:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, MLFlowLogger) and logger.run_id is not None:
            return MlflowRun(logger.experiment, logger.run_id, logger.experiment.tracking_uri)
    return None


def save_figure(trainer: Trainer, folder: Path, name: str, figure: "Figure") -> None:
    """Give a figure to the MLflow run, or write it where there is none; an earlier one of that name is replaced.

    Call it on the first rank.

    Args:
        trainer: Knows the run.
        folder: For figures without an MLflow run.
        name: Without suffix; slashes make folders.
        figure: What to save.
    """
    run = mlflow_run(trainer)
    if run is not None:
        run.client.log_figure(run.run_id, figure, f"figures/{name}.png")
        return
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def safe_name(text: str) -> str:
    """Text as a part of a metric key or of a file name: letters, digits, ``_``, ``-`` and dots inside."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip(".") or "_"

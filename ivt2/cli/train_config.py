"""What ``train.py`` reads from its configuration, and the two questions it asks of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from hydra.utils import instantiate

from ivt2.cli.schema import did_you_mean
from ivt2.errors import InputError


class TrainConfig(Protocol):
    """Root keys of ``conf/train.yaml`` (its groups aside) with their types."""

    name: str
    """Name of the run: its folder under ``outputs`` and its title on the dashboard."""
    task: str
    """Stage or task: the MLflow experiment."""
    seed: int
    run: Sequence[Literal["fit", "validate", "test", "predict"]]
    """Entry points of the Trainer, called in this order."""
    ckpt_path: str | None
    """Checkpoint to resume from, or to evaluate where ``run`` has no fit: a path, or ``last`` in this run folder."""
    after_fit: Literal["best", "current"]
    """Weights that the entries after fit use: those of the best checkpoint, or those just trained."""
    objective: str | None
    """Logged metric that a run returns to a sweep."""
    replace: bool
    """Empty the run folder when it holds an older run."""
    callbacks: Any
    logger: Any
    trainer: Any
    datamodule: Any
    module: Any
    paths: Any


def build_all(group: Any) -> list[Any]:
    """Instances of a group that holds several nodes by name (callbacks, loggers), in its order; nulls are left out."""
    built = instantiate(group, _convert_="all") or {}
    return [part for part in built.values() if part is not None] if isinstance(built, dict) else [built]


def checkpoint(ckpt_path: str | None, run_dir: Path, *, trains: bool) -> str | None:
    """The checkpoint to start from.

    Args:
        ckpt_path: What the configuration says; ``last`` is the newest one of the run folder that verifies. Where there
            is none yet, training starts anew, so that one command line serves a job and its restarts.
        run_dir: Folder of the run.
        trains: Whether the run begins with training.

    Raises:
        InputError: It is a path and nothing is there, there is none to evaluate, or it holds weights alone, from which
            no run goes on.
    """
    if ckpt_path == "last":
        return _newest(run_dir / "checkpoints", trains=trains)
    if trains and ckpt_path is not None:
        _require_state(ckpt_path)
    if ckpt_path is None or "://" in ckpt_path or Path(ckpt_path).exists():
        return ckpt_path
    remedy = "give a checkpoint, or 'last' with the paths.run_dir of the run that goes on"
    raise InputError(f"ckpt_path: {ckpt_path} does not exist; {remedy}")


def _require_state(ckpt_path: str) -> None:
    from ivt2.callbacks.checkpoint_io import WEIGHTS_KEY
    from ivt2.checkpoint import read_metadata
    from ivt2.checkpoint.manifest import MANIFEST

    if (Path(ckpt_path) / MANIFEST).is_file() and WEIGHTS_KEY in read_metadata(Path(ckpt_path)):
        remedy = "go on from one in its `checkpoints`, or start another run with module.initial"
        raise InputError(f"ckpt_path: {ckpt_path} holds weights alone; {remedy}")


def _newest(folder: Path, *, trains: bool) -> str | None:
    from ivt2.checkpoint import newest_valid
    from ivt2.checkpoint.manifest import MANIFEST

    newest = newest_valid(folder)
    if newest is not None:
        return str(newest)
    if next(folder.glob(f"*/{MANIFEST}"), None) is not None:
        remedy = "restore one, or start anew without ckpt_path and with replace=true"
        raise InputError(f"ckpt_path=last: every checkpoint in {folder} is damaged; {remedy}")
    if next(folder.glob("*.ckpt"), None) is not None:
        return "last"  # of a strategy that writes sharded folders of its own, which Lightning finds
    if not trains:
        raise InputError(f"ckpt_path=last: {folder} holds no checkpoint; give the paths.run_dir of a run that has one")
    return None


def replaced(module: Mapping[str, Any], ckpt_path: str | None) -> dict[str, None]:
    """Arguments of the module to leave out: start weights that a checkpoint replaces, for their files may be gone.

    Args:
        module: What the configuration says of it.
        ckpt_path: The checkpoint that the run goes on from or evaluates.
    """
    return {"initial": None} if ckpt_path is not None and "initial" in module else {}


def check_architecture(module: Any, ckpt_path: str | None) -> None:
    """Compare the weights of a checkpoint with those of the module before the Trainer loads them.

    A checkpoint without our manifest is left to the strategy that wrote it.

    Raises:
        InputError: Naming weights that are missing, unexpected or of another shape.
    """
    from ivt2.checkpoint import require_same_architecture
    from ivt2.checkpoint.manifest import MANIFEST

    if ckpt_path is not None and (Path(ckpt_path) / MANIFEST).is_file():
        require_same_architecture(module, Path(ckpt_path))


def value_of(metrics: Mapping[str, Any], objective: str | None) -> float | None:
    """The metric that the run returns.

    Raises:
        InputError: No metric of that name was logged.
    """
    if objective is None:
        return None
    if objective not in metrics:
        near = did_you_mean(objective, metrics)
        logged = ", ".join(sorted(metrics)) or "nothing"
        raise InputError(f"objective: the run logged no {objective!r}{near}; it logged: {logged}")
    return float(metrics[objective])

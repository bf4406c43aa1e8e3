"""The folder of a run: found, checked, emptied where that was asked for."""

import logging
import os
import shutil
from pathlib import Path

from omegaconf import DictConfig, open_dict

from ivt2.errors import InputError

MARK = ".ivt2-run"
"""Empty file that says: everything in this folder was written by a run."""

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def process_rank() -> int:
    """Rank of this process among those of one run, from what launchers leave in the environment; 0 when alone."""
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)


def close_log_files() -> None:
    """Take the log files from every process but the first, which alone writes them."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


def pin_paths(cfg: DictConfig, folder: Path) -> None:
    """Make ``paths`` say what is true: the run folder that Hydra made, and the root as an absolute path.

    All processes of one run thereby share one folder, although each of them composed the configuration at its own time.

    Args:
        cfg: Configuration, changed in place where it has a node ``paths``.
        folder: Run folder of this process.
    """
    if "paths" not in cfg:
        return
    with open_dict(cfg):
        cfg.paths.root = str(Path(cfg.paths.root).resolve())
        cfg.paths.run_dir = str(folder.resolve())


def _is_log_of_now(path: Path) -> bool:
    handlers = logging.getLogger().handlers
    names = [Path(handler.baseFilename) for handler in handlers if isinstance(handler, logging.FileHandler)]
    return path.resolve() in names


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def prepare(folder: Path, *, replace: bool, resume: bool) -> None:
    """Make the folder ready for a run, so that no file of an older run can be mistaken for one of this run.

    Args:
        folder: Run folder; Hydra has just written ``.hydra`` and opened the log in it.
        replace: Empty it when it holds an older run.
        resume: The run goes on from a checkpoint: leave everything.

    Raises:
        InputError: The folder holds an older run and neither is wanted, or it holds files that are not a run's.
    """
    mark = folder / MARK
    older = [path for path in folder.iterdir() if path.name not in {".hydra", MARK} and not _is_log_of_now(path)]
    if older and not resume:
        if not mark.exists():
            raise InputError(f"{folder}: holds files that no run wrote; choose another folder with paths.run_dir=...")
        if not replace:
            remedy = "go on with ckpt_path=last, say replace=true, or choose another folder with paths.run_dir=..."
            raise InputError(f"{folder}: holds an older run; {remedy}")
        for path in older:
            _remove(path)
    if replace and not resume:
        for path in folder.glob("*.log"):
            os.truncate(path, 0)
    mark.touch()

"""Sweeps (``-m``): every job is a fresh process of the same program, here one after the other.

Hydra's sweeper expands the overrides and its launcher calls the job's function as usual; the door puts :class:`Sweep`
in the place of that function. A job inside the sweeping process could not start several ranks, because Lightning starts
them by executing the command line again, ``-m`` included. Hydra instantiates launchers of its own packages only, which
is why this is not one. A launcher that hands jobs to a cluster (``hydra/launcher=submitit_slurm``) takes a copy of it
there, where it starts the same process.
"""

import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ivt2.cli.tracking import ParentRun, mlflow_logger

log = logging.getLogger(__name__)

OBJECTIVE_FILE = "objective.json"
"""File in the run folder that holds the value which a command returned."""

_NOT_FOR_JOBS = ("hydra.mode", "hydra.sweep", "hydra/sweeper", "hydra/launcher", "hydra.launcher", "hydra.run.dir")


@dataclass(frozen=True)
class Job:
    """One job of a sweep and what came of it."""

    overrides: list[str]
    folder: str
    exit_code: int
    seconds: float
    objective: float | None


def program() -> list[str]:
    """Return the beginning of the command line that starts this program again."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return [sys.executable, str(Path(sys.argv[0]).resolve())] if spec is None else [sys.executable, "-m", spec.name]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def job_command(start: Sequence[str], hydra: Any, flags: Sequence[str]) -> list[str]:
    """Command line of one job.

    Args:
        start: Beginning of the command line, as ``program`` gives it.
        hydra: Hydra's own configuration of the job.
        flags: Flags that say where the configuration lies, as given to the sweep.
    """
    settings = [text for text in hydra.overrides.hydra if not text.lstrip("+~").startswith(_NOT_FOR_JOBS)]
    folder = f"hydra.run.dir={_quoted(hydra.runtime.output_dir)}"
    return [*start, *flags, *hydra.overrides.task, *settings, folder, "hydra.mode=RUN"]


def _objective(folder: Path) -> float | None:
    file = folder / OBJECTIVE_FILE
    return float(json.loads(file.read_text())["objective"]) if file.exists() else None


class Sweep:
    """Runs the jobs that Hydra's sweeper asks for, and keeps the account of them.

    Args:
        flags: Flags that say where the configuration lies, passed on to every job.
    """

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self._flags = list(flags)
        self._program = program()
        self._elsewhere = False
        self._folder: Path | None = None
        self._parent: ParentRun | None = None
        self.jobs: list[Job] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_elsewhere": True}

    def _start(self, cfg: DictConfig, folder: Path) -> None:
        self._folder = folder
        logger = mlflow_logger(cfg)
        if logger is not None:
            self._parent = ParentRun(logger, name=f"sweep {folder.name}")

    def run(self, cfg: DictConfig, hydra: Any) -> float:
        """Run one job to its end.

        Args:
            cfg: Configuration of the job.
            hydra: Hydra's own configuration of the job.

        Returns:
            The job's objective; NaN when it failed or returned nothing.

        Raises:
            ValueError: A launcher took the job elsewhere and it failed; the launcher brings this back when all
                jobs are over, and the sweep ends with its line.
        """
        folder = Path(hydra.runtime.output_dir)
        if self._folder is None and not self._elsewhere:
            self._start(cfg, Path(hydra.sweep.dir).resolve())
        parent = {} if self._parent is None else self._parent.environment()
        start = time.monotonic()
        line = job_command(self._program, hydra, self._flags)
        code = subprocess.run(line, env=os.environ | parent, check=False).returncode  # noqa: S603 - this same program
        seconds = round(time.monotonic() - start, 1)
        if code and self._elsewhere:
            overrides = " ".join(hydra.overrides.task)
            raise ValueError(f"job {overrides}: ended with exit status {code}; see the logs in {hydra.sweep.dir}")
        value = None if code else _objective(folder)
        job = Job(list(hydra.overrides.task), str(folder), code, seconds, value)
        self.jobs.append(job)
        if code:
            log.error("job %d failed with exit status %d: %s", len(self.jobs) - 1, code, " ".join(job.overrides))
        return math.nan if value is None else value

    def finish(self) -> int:
        """Write ``sweep.json``, end the parent run.

        Returns:
            Exit status of the sweep: 1 when a job failed.
        """
        if self._folder is None:
            return 0
        file = self._folder / "sweep.json"
        file.write_text(json.dumps({"jobs": [asdict(job) for job in self.jobs]}, indent=2) + "\n")
        failed = sum(job.exit_code != 0 for job in self.jobs)
        if self._parent is not None:
            objectives = {step: job.objective for step, job in enumerate(self.jobs) if job.objective is not None}
            self._parent.finish(objectives, failed, file)
        log.info("%d of %d jobs failed; %s", failed, len(self.jobs), file)
        return int(failed > 0)

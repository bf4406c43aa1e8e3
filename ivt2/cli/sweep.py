"""Sweeps (``-m``): every job is a fresh process of the same program, one after the other.

Hydra's sweeper expands the overrides and its launcher calls the job's function as usual; the door puts :class:`Sweep`
in the place of that function. A job inside the sweeping process could not start several ranks, because Lightning starts
them by executing the command line again, ``-m`` included. Hydra instantiates launchers of its own packages only, which
is why this is not one.
"""

import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

PARENT_RUN = "IVT2_PARENT_RUN_ID"
"""Environment variable through which a job's MLflow run learns its parent."""

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


def _program() -> list[str]:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return [sys.executable, str(Path(sys.argv[0]).resolve())] if spec is None else [sys.executable, "-m", spec.name]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def job_command(hydra: Any, flags: Sequence[str]) -> list[str]:
    """Command line of one job.

    Args:
        hydra: Hydra's own configuration of the job.
        flags: Flags that say where the configuration lies, as given to the sweep.
    """
    settings = [text for text in hydra.overrides.hydra if not text.lstrip("+~").startswith(_NOT_FOR_JOBS)]
    folder = f"hydra.run.dir={_quoted(hydra.runtime.output_dir)}"
    return [*_program(), *flags, *hydra.overrides.task, *settings, folder, "hydra.mode=RUN"]


def _objective(folder: Path) -> float | None:
    file = folder / OBJECTIVE_FILE
    return float(json.loads(file.read_text())["objective"]) if file.exists() else None


def _mlflow_nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if "tracking_uri" in value:
            yield value
        for item in value.values():
            yield from _mlflow_nodes(item)


class ParentRun:
    """The MLflow run under which the runs of a sweep's jobs stand.

    Args:
        logger: The jobs' MLflow logger node: ``tracking_uri``, ``experiment_name``, perhaps ``artifact_location``.
        name: Name of the run.
    """

    def __init__(self, logger: Mapping[str, Any], name: str) -> None:
        from mlflow import MlflowClient

        uri = str(logger["tracking_uri"])
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=uri)
        experiment = str(logger.get("experiment_name", "Default"))
        found = self._client.get_experiment_by_name(experiment)
        location = logger.get("artifact_location")
        number = found.experiment_id if found else self._client.create_experiment(experiment, location)
        self.run_id: str = self._client.create_run(number, run_name=name, tags={"kind": "sweep"}).info.run_id

    def finish(self, jobs: Sequence[Job], file: Path) -> None:
        """Log the objective of every job (step = number of the job) and the table of all jobs, and end the run."""
        for step, job in enumerate(jobs):
            if job.objective is not None:
                self._client.log_metric(self.run_id, "objective", job.objective, step=step)
        self._client.log_metric(self.run_id, "failed_jobs", sum(job.exit_code != 0 for job in jobs))
        self._client.log_artifact(self.run_id, str(file))
        self._client.set_terminated(self.run_id, "FAILED" if any(job.exit_code for job in jobs) else "FINISHED")


class Sweep:
    """Runs the jobs that Hydra's sweeper asks for, and keeps the account of them.

    Args:
        flags: Flags that say where the configuration lies, passed on to every job.
    """

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self._flags = list(flags)
        self._folder: Path | None = None
        self._parent: ParentRun | None = None
        self.jobs: list[Job] = []

    def _start(self, cfg: DictConfig, folder: Path) -> None:
        self._folder = folder
        logger = OmegaConf.to_container(cfg.logger, resolve=True) if cfg.get("logger") else None
        node = next(_mlflow_nodes(logger), None)
        if node is not None:
            self._parent = ParentRun(node, name=f"sweep {folder.name}")

    def run(self, cfg: DictConfig, hydra: Any) -> float:
        """Run one job to its end.

        Args:
            cfg: Configuration of the job.
            hydra: Hydra's own configuration of the job.

        Returns:
            The job's objective; NaN when it failed or returned nothing.
        """
        folder = Path(hydra.runtime.output_dir)
        if self._folder is None:
            self._start(cfg, Path(hydra.sweep.dir).resolve())
        parent = {} if self._parent is None else {PARENT_RUN: self._parent.run_id}
        start = time.monotonic()
        line = job_command(hydra, self._flags)
        code = subprocess.run(line, env=os.environ | parent, check=False).returncode  # noqa: S603 - this same program
        seconds = round(time.monotonic() - start, 1)
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
        if self._parent is not None:
            self._parent.finish(self.jobs, file)
        failed = sum(job.exit_code != 0 for job in self.jobs)
        log.info("%d of %d jobs failed; %s", failed, len(self.jobs), file)
        return int(failed > 0)

"""What the door itself does with MLflow: the database's folder, and the run under which a sweep's runs stand."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

_SQLITE = "sqlite:///"


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if "tracking_uri" in value:
            yield value
        for item in value.values():
            yield from _nodes(item)


def mlflow_logger(cfg: DictConfig) -> dict[str, Any] | None:
    """The node of the configured MLflow logger, resolved: ``tracking_uri``, ``experiment_name``, ...

    Its database's folder exists afterwards; SQLite does not make it.
    """
    group = OmegaConf.to_container(cfg.logger, resolve=True) if cfg.get("logger") else None
    node = next(_nodes(group), None)
    if node is None:
        return None
    uri = str(node["tracking_uri"])
    if uri.startswith(_SQLITE):
        Path(uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    return dict(node)


class ParentRun:
    """The MLflow run under which the runs of a sweep's jobs stand.

    Args:
        logger: The jobs' MLflow logger node.
        name: Name of the run.
    """

    def __init__(self, logger: Mapping[str, Any], name: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=str(logger["tracking_uri"]))
        experiment = str(logger.get("experiment_name", "Default"))
        found = self._client.get_experiment_by_name(experiment)
        location = logger.get("artifact_location")
        number = found.experiment_id if found else self._client.create_experiment(experiment, location)
        self.run_id: str = self._client.create_run(number, run_name=name, tags={"kind": "sweep"}).info.run_id

    def environment(self) -> dict[str, str]:
        """Environment of a job: MLflow gives every run made in it these tags."""
        return {"MLFLOW_RUN_CONTEXT": json.dumps({"mlflow.parentRunId": self.run_id})}

    def finish(self, objectives: Mapping[int, float], failed: int, file: Path) -> None:
        """Log what came of the jobs and end the run.

        Args:
            objectives: Number of a job -> its objective, logged as the metric ``objective`` at that step.
            failed: Number of jobs that failed.
            file: Table of all jobs, kept as an artifact.
        """
        for step, value in objectives.items():
            self._client.log_metric(self.run_id, "objective", value, step=step)
        self._client.log_metric(self.run_id, "failed_jobs", failed)
        self._client.log_artifact(self.run_id, str(file))
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")

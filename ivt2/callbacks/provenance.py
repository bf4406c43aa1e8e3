"""What a run was: configuration, code, machine, on the dashboard and in every checkpoint."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from typing_extensions import override

from ivt2.callbacks.checkpoint_io import CONFIG_KEY, RUN_KEY
from ivt2.callbacks.environment import hardware, revision, versions
from ivt2.callbacks.tracking import MlflowRun, mlflow_run

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_LOG = logging.getLogger(__name__)
_MAX_VALUE = 500
"""Characters of a parameter's value that every MLflow store takes."""
_MAX_BATCH = 100
"""Parameters and tags that MLflow takes at a time."""


class Provenance(Callback):
    """Records configuration, revision, environment and system metrics at the start, once per run.

    A parameter of an MLflow run never changes: when a run goes on with another value, the first one stays as the
    parameter and the new one becomes the tag ``resumed.<key>``. What differs between machines is a tag from the start.

    Args:
        config: Resolved configuration as plain data; also written into every checkpoint.
        system_metrics_interval_s: Seconds between samples of processor, memory, disk and network; None leaves them out.
    """

    def __init__(self, config: dict[str, Any], *, system_metrics_interval_s: float | None = 10.0) -> None:
        self.config = config
        self.system_metrics_interval_s = system_metrics_interval_s
        self._recorded = False
        self._run: MlflowRun | None = None
        self._monitor: SystemMetricsMonitor | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record the run before anything is loaded or trained."""
        if not trainer.is_global_zero:
            return
        self._run = mlflow_run(trainer)
        if self._run is not None:
            self._run.client.update_run(self._run.run_id, status="RUNNING")
        if not self._recorded:
            self._record(trainer)
            self._recorded = True
        self._start_monitor()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop the samples."""
        self._stop_monitor()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the samples; Lightning tears nothing down after an exception."""
        self._stop_monitor()

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the configuration, and the run that a resumed one should go on with, into the checkpoint."""
        checkpoint[CONFIG_KEY] = self.config
        if self._run is not None:
            checkpoint[RUN_KEY] = self._run.run_id

    def _record(self, trainer: Trainer) -> None:
        flat = dict(flatten(self.config))
        for logger in trainer.loggers:
            if not isinstance(logger, MLFlowLogger):
                logger.log_hyperparams(flat)
        if self._run is not None:
            _record_in_mlflow(self._run, self.config, flat)

    def _start_monitor(self) -> None:
        if self._run is None or self.system_metrics_interval_s is None:
            return
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
        except ModuleNotFoundError as error:
            _LOG.warning("no system metrics on the dashboard: %s; install it", error)
            return
        self._monitor = SystemMetricsMonitor(
            self._run.run_id,
            sampling_interval=self.system_metrics_interval_s,
            resume_logging=True,
            tracking_uri=self._run.tracking_uri,
        )
        self._monitor.start()

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and texts of a nested configuration; lists of plain values stay together.

    Args:
        value: Mappings, sequences and scalars.
        prefix: Dotted key of ``value``.
    """
    items: Sequence[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        items = list(enumerate(value))
    if not items:
        yield prefix, str(value)
        return
    for key, item in items:
        yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _record_in_mlflow(run: MlflowRun, config: dict[str, Any], flat: dict[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    known = run.client.get_run(run.run_id).data.params
    wanted = {_parameter_name(key): value[:_MAX_VALUE] for key, value in flat.items()}
    changed = {key: value for key, value in wanted.items() if known.get(key, value) != value}
    state = revision()
    tags = {
        "mlflow.source.git.commit": state["commit"],
        "git.dirty": state["dirty"],
        "config.sha256": config_hash(config),
        **{f"hardware.{key}": str(value) for key, value in hardware().items()},
        **{f"version.{key}": value for key, value in versions().items()},
        **{f"resumed.{key}": value for key, value in changed.items()},
    }
    entries = [Param(key, value) for key, value in wanted.items() if key not in known]
    labels = [RunTag(key, value) for key, value in tags.items()]
    for start in range(0, max(len(entries), len(labels)), _MAX_BATCH):
        part = slice(start, start + _MAX_BATCH)
        run.client.log_batch(run.run_id, params=entries[part], tags=labels[part])
    run.client.log_dict(run.run_id, config, "config.yaml")


def _parameter_name(key: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in key)[:250]

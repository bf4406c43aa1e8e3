"""The result of a run in one small file, and retrieval numbers as one table."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from ivt2.callbacks.environment import hardware, peak_memory_gb, revision, versions
from ivt2.callbacks.provenance import Provenance, config_hash
from ivt2.callbacks.tracking import mlflow_run
from ivt2.checkpoint import fingerprint
from ivt2.errors import InputError
from ivt2.metrics.retrieval import RetrievalResult

FILE = "result.json"

_ROWS = {"raw": "raw cosine", "dual_softmax": "dual softmax", "reranked": "re-ranked"}
_VIEWS = {"v": "", "a": ", sound", "av": ", with sound"}
_COLUMNS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "median_rank": "median"}

_FILE_WIDTH = 120
"""Characters of a table that goes to a file or a pipe."""


class Results(Callback):
    """Writes ``result.json`` after fit, validate and test, each adding to what the earlier ones found.

    The file holds ``metrics``, ``protocol`` (of each dataset: its size, kinds of scores, candidates re-ranked),
    ``hashes`` (checkpoint, config, data), ``revision``, ``hardware``, ``versions``, ``seconds`` by entry point and
    ``memory`` (peaks), all of them mappings of numbers and texts. A number that is not finite is written as text.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._metrics: dict[str, float] = {}
        self._protocol: dict[str, Any] = {}
        self._hashes: dict[str, str] = {}
        self._seconds: dict[str, float] = {}
        self._started_s = 0.0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started_s = time.perf_counter()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final values of training."""
        self._write(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of ``validate``; what fit validates is written at its end."""
        if trainer.state.fn == "validate":
            self._finish(trainer, pl_module)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of ``test``."""
        self._finish(trainer, pl_module)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)
        results = _retrieval_results(pl_module)
        if results and trainer.is_global_zero:
            console = get_console() if get_console().is_terminal else Console(width=_FILE_WIDTH)
            console.print(retrieval_table(results))

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        entry = trainer.state.fn
        if not trainer.is_global_zero or trainer.fast_dev_run or entry is None:  # type: ignore[attr-defined]
            return
        self._metrics |= {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        self._protocol |= _protocol(pl_module)
        self._hashes |= _hashes(trainer)
        self._seconds[entry.value] = time.perf_counter() - self._started_s
        write_json(
            self.folder / FILE,
            {
                "metrics": self._metrics,
                "protocol": self._protocol,
                "hashes": self._hashes,
                "revision": revision(),
                "hardware": hardware(),
                "versions": versions(),
                "seconds": self._seconds,
                "memory": peak_memory_gb(),
            },
        )
        run = mlflow_run(trainer)
        if run is not None:
            run.client.log_artifact(run.run_id, str(self.folder / FILE))


def retrieval_table(results: Mapping[str, RetrievalResult]) -> Table:
    """Recalls and median ranks, text first; one row per dataset, protocol and view (pictures, sound or both)."""
    table = Table(title="zero-shot retrieval")
    table.add_column("dataset", overflow="fold")
    table.add_column("scores", overflow="fold")
    for direction in ("t2v", "v2t"):
        for title in _COLUMNS.values():
            table.add_column(f"{direction} {title}", justify="right")
    for dataset, result in results.items():
        for protocol, metrics in result.metrics.items():
            scores = _ROWS.get(protocol, protocol)
            for view in (name for name in _VIEWS if f"t2{name}_r1" in metrics):
                ways = (f"t2{view}", f"{view}2t")
                numbers = [f"{metrics[f'{direction}_{name}']:.1f}" for direction in ways for name in _COLUMNS]
                table.add_row(Text(dataset), f"{scores}{_VIEWS[view]}", *numbers)
    return table


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is the old one or the new one at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105  (one call that replaces, on every system)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _retrieval_results(pl_module: LightningModule) -> dict[str, RetrievalResult]:
    return dict(getattr(pl_module, "retrieval_results", {}))


def _protocol(pl_module: LightningModule) -> dict[str, Any]:
    protocol: dict[str, Any] = {}
    for dataset, result in _retrieval_results(pl_module).items():
        num_clips, num_captions = result.similarity.shape
        protocol[dataset] = {"num_clips": num_clips, "num_captions": num_captions, "scores": ", ".join(result.metrics)}
        if "reranked" in result.metrics:
            protocol[dataset]["rerank_top_k"] = int(getattr(pl_module, "rerank_top_k", 0))
    return protocol


def _hashes(trainer: Trainer) -> dict[str, str]:
    hashes = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Provenance):
            hashes["config"] = config_hash(callback.config)
    data = getattr(trainer.datamodule, "manifest_hash", None)  # type: ignore[attr-defined]
    if data is not None:
        hashes["data"] = str(data)
    saved = trainer.checkpoint_callback
    path = getattr(saved, "best_model_path", None) if trainer.state.fn == "fit" else trainer.ckpt_path
    if path:
        try:
            hashes["checkpoint"] = fingerprint(Path(path))
        except (InputError, OSError):  # sharded checkpoints have no manifest
            hashes["checkpoint"] = "no manifest"
    elif trainer.state.fn != "fit":
        hashes["checkpoint"] = "weights in memory"
    return hashes

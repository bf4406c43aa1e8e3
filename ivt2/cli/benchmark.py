"""Measure speed by turns with something known: ``python -m ivt2.cli.benchmark suite=loader output=loader.json``."""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ivt2.cli.door import command
from ivt2.cli.output_file import writable

if TYPE_CHECKING:
    from rich.table import Table

    from ivt2.cli.benchmarks.timing import Figure


class BenchmarkConfig(Protocol):
    """Root keys of ``conf/benchmark.yaml``."""

    suite: Any
    """What is measured: a choice of ``conf/suite``."""
    folder: str | None
    """Where rendered clips and shards are kept for the next time."""
    output: str | None
    """File for the figures, as json."""


class Suite(Protocol):
    """Figures that belong together."""

    turns: int
    """How often ``run`` calls ``tick``."""

    def run(self, folder: Path, tick: Callable[[], object]) -> "Iterator[Figure]":
        """Yield the figures one by one.

        Args:
            folder: for what is rendered and written.
            tick: called after each turn.
        """


@contextmanager
def working_folder(folder: str | None) -> Iterator[Path]:
    """The folder that was named, or one that is removed at the end."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="ivt2-benchmark-") as temporary:
        yield Path(temporary)


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code; the load tells how busy the machine was."""
    from ivt2.data.workers import num_cores

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": num_cores(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": {name: version(name) for name in ("ivt2", "torch", "av", "numpy", "pillow")},
    }


def as_table(title: str, figures: "Sequence[Figure]") -> "Table":
    """The figures for the terminal: median and quartiles, what was asked, what else was measured."""
    from rich.table import Table

    table = Table("measured", "median", "quartiles", "floor", "aim", "reached", title=title)
    table.add_column("details", no_wrap=True)
    for figure in figures:
        low, median, high = (f"{value:.3g}" for value in figure.value)
        asked = ["" if value is None else f"{value:g}" for value in (figure.floor, figure.aim)]
        further = "\n".join(f"{name} {value:.3g}" for name, value in figure.details.items())
        table.add_row(figure.what, f"{median} {figure.unit}", f"{low}\n{high}", *asked, figure.reached, further)
        table.add_section()
    return table


@command("benchmark", keys=BenchmarkConfig)
def main(cfg: BenchmarkConfig) -> None:
    """Run one suite, print its table and write its figures."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate
    from rich.console import Console

    from ivt2.data.progress import progress_bar

    name = HydraConfig.get().runtime.choices["suite"]
    suite: Suite = instantiate(cfg.suite, _convert_="all")
    output = None if cfg.output is None else writable(Path(cfg.output))
    with working_folder(cfg.folder) as folder, progress_bar("turns") as bar:
        task = bar.add_task(name, total=suite.turns)
        figures = list(suite.run(folder, lambda: bar.advance(task)))
    Console().print(as_table(name, figures))
    if output is not None:
        facts = [{**asdict(figure), "value": figure.value._asdict(), "reached": figure.reached} for figure in figures]
        output.write_text(json.dumps({"suite": name, "machine": machine(), "figures": facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()

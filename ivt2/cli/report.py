"""Print the scores of a run: ``python -m ivt2.cli.report run_dir=outputs/quickstart``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ivt2.cli.door import command
from ivt2.errors import InputError


class ReportConfig(Protocol):
    """Root keys of ``conf/report.yaml``."""

    run_dir: str
    """Folder of a run that has ended."""


def read_result(folder: Path) -> dict[str, Any]:
    """The run's ``result.json``.

    Raises:
        InputError: There is none, or it is not what a run writes.
    """
    file = folder / "result.json"
    if not file.is_file():
        raise InputError(f"{file}: does not exist; give the run_dir of a run that has ended")
    try:
        result = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: is not JSON ({error}); run again") from error
    if not isinstance(result, dict) or not isinstance(result.get("metrics"), dict):
        raise InputError(f"{file}: has no metrics; run again")
    return result


def scores(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metrics by the data they were measured on: ``test/didemo/t2v_r1`` stands under ``test/didemo``."""
    grouped: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        where, _, name = key.rpartition("/")
        grouped.setdefault(where, {})[name] = value
    return grouped


@command("report", keys=ReportConfig)
def main(cfg: ReportConfig) -> None:
    """One table: where measured, what, value."""
    from rich.console import Console
    from rich.table import Table

    folder = Path(cfg.run_dir)
    result = read_result(folder)
    table = Table("measured on", "metric", "value", title=str(folder))
    table.columns[2].justify = "right"
    for where, named in scores(result["metrics"]).items():
        for name, value in named.items():
            table.add_row(where, name, f"{value:.4g}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()

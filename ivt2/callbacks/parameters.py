"""How many parameters each part of the network has, and which of them learn."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn
from typing_extensions import override

from ivt2.callbacks.results import write_json

FILE = "parameters.json"

_FILE_WIDTH = 120
"""Characters of a table that goes to a file or a pipe."""


class Part(NamedTuple):
    """A row of the table."""

    name: str
    parameters: int
    trainable: int

    @property
    def state(self) -> str:
        """``frozen``, ``partly`` or ``trained``."""
        if self.trainable == 0:
            return "frozen"
        return "trained" if self.trainable == self.parameters else "partly"


class Parameters(Callback):
    """Prints a table of the parts at the start of fit, and writes ``parameters.json``.

    The file maps the name of a part to its ``parameters``, ``trainable`` and ``state``. Numbers are those of the whole
    network on any engine: they are taken before it is sharded.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._parts: list[Part] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count."""
        self._parts = count_parameters(pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write, once no mistake was found in what is to be trained."""
        if not trainer.is_global_zero:
            return
        console = get_console() if get_console().is_terminal else Console(width=_FILE_WIDTH)
        console.print(parameters_table(self._parts))
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rows = {
                part.name: {"parameters": part.parameters, "trainable": part.trainable, "state": part.state}
                for part in self._parts
            }
            write_json(self.folder / FILE, rows)


def count_parameters(pl_module: nn.Module) -> list[Part]:
    """The children of a module, those of its ``model`` below it; a shared parameter counts once in each of them.

    Args:
        pl_module: the module; children without parameters are left out.
    """
    children = []
    for name, child in pl_module.named_children():
        children.append((name, child))
        if name == "model":
            children += [(f"model.{part}", module) for part, module in child.named_children()]
    counted = [_count(name, child) for name, child in children]
    return [part for part in counted if part.parameters]


def parameters_table(parts: Sequence[Part]) -> Table:
    """A row for each part."""
    table = Table(title="parameters")
    table.add_column("part", overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("trainable", justify="right")
    table.add_column("state")
    for part in parts:
        table.add_row(Text(part.name), f"{part.parameters:,}", f"{part.trainable:,}", part.state)
    return table


def _count(name: str, module: nn.Module) -> Part:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return Part(name, sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns))

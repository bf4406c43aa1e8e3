"""How much memory the contrastive loss takes by chunks of a rank's rows, against the matrix of all pairs."""

import multiprocessing
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ivt2.cli.benchmarks.timing import Figure, Quartiles
from ivt2.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_STATUS = Path("/proc/self/status")
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ContrastSuite:
    """Peak memory of loss and gradients on one of several ranks, beyond the features of all ranks; float32, on CPU.

    Each measurement has a process of its own. No ranks are started: the features are drawn as if gathered.

    Args:
        num_pairs: of the global batch.
        width: of the features.
        num_ranks: that share the batch.
        chunk: rows of a rank compared with all columns at a time.
        pairs: measurements of each form.
    """

    num_pairs: int
    width: int
    num_ranks: int
    chunk: int
    pairs: int

    @property
    def turns(self) -> int:
        """Measurements of both forms."""
        return 2 * self.pairs

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:  # noqa: ARG002
        """Yield the figure.

        Raises:
            InputError: when nothing is to be measured, or the system does not tell a process's peak memory.
        """
        for name in ("num_pairs", "width", "num_ranks", "chunk", "pairs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: must be at least 1")
        if not _STATUS.exists():
            raise InputError(f"{_STATUS}: not found; this suite runs on Linux only")
        found: dict[str, list[_Peak]] = {"chunks": [], "matrix": []}
        for _ in range(self.pairs):
            for form, peaks in found.items():
                peaks.append(self._measured(form))
                tick()
        ratios = [ours.memory / full.memory for ours, full in zip(found["chunks"], found["matrix"], strict=True)]
        details: dict[str, float] = {}
        for form, peaks in found.items():
            details[f"{form} MiB"] = Quartiles.of([peak.memory / _MIB for peak in peaks]).median
            details[f"{form} s"] = Quartiles.of([peak.wall_s for peak in peaks]).median
        what = f"memory of {self.num_pairs} pairs, {self.num_ranks} ranks, chunks of {self.chunk}"
        yield Figure(what=what, value=Quartiles.of(ratios), unit="x", floor=0.5, aim=0.3, details=details)

    def _measured(self, form: str) -> "_Peak":
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
            return executor.submit(_peak, form, self).result()


class _Peak(NamedTuple):
    memory: float
    """Bytes beyond what was there before."""
    wall_s: float


def _peak(form: str, suite: ContrastSuite) -> _Peak:
    import torch

    torch.set_num_threads(1)
    work = {"chunks": _chunks, "matrix": _matrix}[form]
    work(ContrastSuite(num_pairs=8, width=4, num_ranks=1, chunk=3, pairs=1))()  # loads what is loaded once
    step = work(suite)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    start_s = time.perf_counter()
    step()
    wall_s = time.perf_counter() - start_s
    return _Peak(_status("VmHWM") - before, wall_s)


def _status(key: str) -> int:
    """A value of this process in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
    assert found is not None, "Linux lists it"
    return int(found[1]) * 1024


def _chunks(suite: ContrastSuite) -> Callable[[], object]:
    """The rows of the first rank, in both directions."""
    import torch
    from torch.nn.functional import normalize

    from ivt2.losses.contrastive_local import softmax_rows

    generator = torch.Generator().manual_seed(0)
    own = suite.num_pairs // suite.num_ranks
    columns = [torch.randn(suite.num_pairs, suite.width, generator=generator) for _ in range(2)]
    rows = [x[:own].clone().requires_grad_() for x in columns]
    for x in columns:
        torch.div(x, x.norm(dim=1, keepdim=True), out=x).requires_grad_()  # as they come from all ranks
    temperature, ids = torch.full((1,), 0.07, requires_grad=True), _ids(suite)

    def step() -> None:
        scaled = [normalize(x, dim=1) / temperature for x in rows]
        sums = [
            softmax_rows(queries, keys, ids[:own], ids, chunk=suite.chunk)
            for queries, keys in zip(scaled, reversed(columns), strict=True)
        ]
        (torch.stack(sums).sum() / (2 * own)).backward()  # type: ignore[no-untyped-call]

    return step


def _matrix(suite: ContrastSuite) -> Callable[[], object]:
    """All rows, as each rank computes them without chunks."""
    import torch

    from ivt2.losses.contrastive import contrastive_loss

    generator = torch.Generator().manual_seed(0)
    visual, text = (torch.randn(suite.num_pairs, suite.width, generator=generator).requires_grad_() for _ in range(2))
    temperature, ids = torch.full((1,), 0.07, requires_grad=True), _ids(suite)

    def step() -> None:
        contrastive_loss(visual, text, temperature, ids).backward()  # type: ignore[no-untyped-call]

    return step


def _ids(suite: ContrastSuite) -> "Tensor":
    """Some clips occur twice."""
    import torch

    return torch.arange(suite.num_pairs) % max(1, suite.num_pairs - suite.num_pairs // 64)

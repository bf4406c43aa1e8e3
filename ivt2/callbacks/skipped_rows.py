"""The list of samples that could not be used: a file of each rank while the run goes on, one file at its end."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from ivt2.errors import InputError


class SkippedRows:
    """Json lines in ``<folder>/<name>.jsonl`` and, of the ranks after the first, in ``<name>-rank00001.jsonl``.

    A row names its ``rank`` and its ``row``, which counts the rows of that rank from 0: a row is known by these two in
    whichever file it lies, so that rows can be cut after a kill and put together twice without harm. Every file is
    changed by one rank alone. Nothing is kept in memory.

    Args:
        folder: shared by all ranks; made with the first row.
        name: of the files.
        rank: of this process.
    """

    def __init__(self, folder: Path, name: str, rank: int) -> None:
        self.name = name
        self.rank = rank
        self.path = folder / (f"{name}-rank{rank:05d}.jsonl" if rank else f"{name}.jsonl")
        self.num_rows = 0
        """Rows that this rank has written, earlier runs of the same training included."""

    def begin(self, kept: Sequence[int], world: int) -> None:
        """Cut the rows that were written after a checkpoint.

        Args:
            kept: rows of each rank when the checkpoint was written; empty for a run that starts from nothing.
            world: how many ranks write now; the first rank also looks after the files of ranks that are gone.
        """
        self.num_rows = kept[self.rank] if self.rank < len(kept) else 0
        paths = [self.path]
        if self.rank == 0:
            live = {f"{self.name}-rank{rank:05d}.jsonl" for rank in range(1, world)}
            paths += [path for path in self._parts() if path.name not in live]
        for path in paths:
            if path.exists():
                _rewrite(path, [path], kept)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, whole, before the call returns.

        Raises:
            InputError: when the disk refuses.
        """
        line = json.dumps({**row, "rank": self.rank, "row": self.num_rows}) + "\n"
        with _told(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="ascii") as file:
                file.write(line)
        self.num_rows += 1

    def put_together(self) -> Path | None:
        """Put the rows of all ranks into the file of the first, which must call it while no rank writes.

        Returns:
            The file; None when there is no row.

        Raises:
            InputError: when the disk refuses.
        """
        parts = self._parts()
        if parts:
            _rewrite(self.path, [self.path, *parts], None)
        for part in parts:
            part.unlink(missing_ok=True)
        return self.path if self.path.exists() else None

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.name}-rank*.jsonl"))


def _rewrite(target: Path, sources: Iterable[Path], kept: Sequence[int] | None) -> None:
    """Replace a file by the rows of some files; by nothing when none is left."""
    temporary = target.with_name(f".{target.name}.tmp")
    with _told(target):
        with temporary.open("w", encoding="ascii") as file:
            file.writelines(_chosen(sources, kept))
        if temporary.stat().st_size:
            temporary.replace(target)
        else:
            temporary.unlink()
            target.unlink(missing_ok=True)


def _chosen(sources: Iterable[Path], kept: Sequence[int] | None) -> Iterator[str]:
    """Lines of the files, each row once; of each rank those before ``kept``, if that is given."""
    following: dict[int, int] = {}
    for line, rank, number in chain.from_iterable(map(_read, sources)):
        limit = math.inf if kept is None else kept[rank] if rank < len(kept) else 0
        if following.get(rank, 0) <= number < limit:
            following[rank] = number + 1
            yield line


def _read(path: Path) -> Iterator[tuple[str, int, int]]:
    """Lines with rank and number; one that a crash of the machine has torn comes after every checkpoint."""
    if not path.exists():
        return
    with path.open(encoding="ascii", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            yield f"{line.rstrip()}\n", int(row["rank"]), int(row["row"])


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); free some space") from error

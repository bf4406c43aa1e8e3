"""How fast files become shards, against plain tar."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ivt2.cli.benchmarks.timing import Cost, Figure, Stopwatch, interleaved, speed_figure, timed
from ivt2.errors import InputError


class PackingSuite:
    """Packing without encoding anew, against ``tar cf`` of the same files, which lie in the system's cache.

    Shards are checked for doubles, indexed, hashed and forced to the disk; an archive of tar is none of this.

    Args:
        file_bytes: size of a file; each is a measurement of its own.
        total_bytes: size of all files of a measurement.
        num_processes: that pack; each is a measurement of its own. tar is one.
        max_samples: of a shard, the piece of work of a process.
        pairs: turns of each side.
    """

    def __init__(
        self,
        *,
        file_bytes: Sequence[int],
        total_bytes: int,
        num_processes: Sequence[int],
        max_samples: int,
        pairs: int,
    ) -> None:
        self.file_bytes = list(file_bytes)
        self.total_bytes = total_bytes
        self.num_processes = list(num_processes)
        self.max_samples = max_samples
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of all measurements."""
        return 2 * self.pairs * len(self.file_bytes) * len(self.num_processes)

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:
        """Yield the figures one by one.

        Raises:
            InputError: when there is no tar.
        """
        if shutil.which("tar") is None:
            raise InputError("tar: is not installed; this suite compares with it")
        for size in self.file_bytes:
            num_files = max(1, self.total_bytes // size)
            media = _written(folder / "packing" / f"{num_files}_files_of_{size}", num_files, size)
            for number in self.num_processes:
                yield speed_figure(
                    f"{num_files} files of {size / 1000:g} kB, {number} process{'es' if number > 1 else ''}",
                    interleaved(
                        partial(self._pack, media, media.with_name("shards"), number),
                        partial(_tar, media, media.with_name("plain.tar")),
                        pairs=self.pairs,
                        tick=tick,
                    ),
                    sides=("pack", "tar"),
                    items=num_files,
                    clock="wall",
                    floor=0.5,
                    aim=0.8,
                )

    def _pack(self, media: Path, output: Path, num_processes: int) -> Cost:
        from ivt2.data.annotations_folder import FolderAnnotations
        from ivt2.data.ledger import Ledger
        from ivt2.data.packing import pack
        from ivt2.data.preparation import Preparation

        shutil.rmtree(output, ignore_errors=True)
        os.sync()  # what earlier turns left to be written is not this turn's
        watch = Stopwatch()
        pack(
            FolderAnnotations(str(media), name="files"),
            media,
            output,
            preparation=Preparation(),
            ledger=Ledger(0),
            max_samples=self.max_samples,
            num_processes=num_processes,
        )
        cost = watch.read()
        shutil.rmtree(output)
        return cost


def _written(folder: Path, num_files: int, size: int) -> Path:
    """A folder of files with random bytes; packing looks at no content."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    for number in range(num_files):
        (folder / f"clip_{number:06d}.mp4").write_bytes(draws.bytes(size))
    return folder


def _tar(media: Path, output: Path) -> Cost:
    os.sync()
    command = ["tar", "cf", str(output), "-C", str(media), "."]
    cost = timed(lambda: subprocess.run(command, check=True))  # noqa: S603  # a folder of ours
    output.unlink()
    return cost

"""What it gains a loader that clips were prepared for sparse reading."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ivt2.cli.benchmarks.clips import raw_footage, rendered, write_shards
from ivt2.cli.benchmarks.loader import BATCH_SIZE, loader_turn, samples_of
from ivt2.cli.benchmarks.timing import Figure, interleaved, speed_figure

if TYPE_CHECKING:
    from ivt2.data.preparation import Preparation

_ASKED = {16: (4.0, 6.0), 8: (7.0, 11.0), 4: (10.0, 16.0)}
"""Frames of a clip -> floor and aim."""


class PreparedSuite:
    """The training loader on prepared shards against the same one on clips as the web has them, by CPU time.

    Args:
        preparation: of the clips.
        num_frames: of a clip; each is a measurement of its own.
        num_workers: of the loader.
        num_clips: different clips, which take turns.
        clip_frames: frames that a clip has.
        num_batches: batches of 4 clips that are measured in a turn.
        pairs: turns of each side.
    """

    def __init__(
        self,
        *,
        preparation: "Preparation",
        num_frames: Sequence[int],
        num_workers: int,
        num_clips: int,
        clip_frames: int,
        num_batches: int,
        pairs: int,
    ) -> None:
        self.preparation = preparation
        self.num_frames = list(num_frames)
        self.num_workers = num_workers
        self.num_clips = num_clips
        self.footage = raw_footage(clip_frames)
        self.num_batches = num_batches
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of all measurements."""
        return 2 * self.pairs * len(self.num_frames)

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:
        """Yield the figures one by one."""
        raw = rendered(folder, self.footage, self.num_clips)
        prepared = [self._prepared(clip) for clip in raw]
        num_samples = samples_of(self.num_batches, self.num_workers)
        sides = [
            write_shards(folder / "prepared" / name, clips, num_samples)
            for name, clips in (("prepared", prepared), ("raw", raw))
        ]
        for num_frames in self.num_frames:
            turns = [
                partial(
                    loader_turn,
                    shards,
                    num_frames=num_frames,
                    num_batches=self.num_batches,
                    num_workers=self.num_workers,
                    isolate=True,
                )
                for shards in sides
            ]
            floor, aim = _ASKED.get(num_frames, (None, None))
            figure = speed_figure(
                f"{num_frames} frames of {self.footage.name}, {self.footage.num_frames} frames",
                interleaved(*turns, pairs=self.pairs, tick=tick),
                sides=("prepared", "raw"),
                items=self.num_batches * BATCH_SIZE,
                clock="cpu",
                floor=floor,
                aim=aim,
            )
            sizes = {"kB prepared": _kilobytes(prepared), "kB raw": _kilobytes(raw)}
            yield replace(figure, details={**figure.details, **sizes})

    def _prepared(self, clip: bytes) -> bytes:
        from ivt2.data.annotations import Annotation

        members, _ = self.preparation("mp4", clip, Annotation(file="clip.mp4", captions=("clip",)))
        return members["mp4"]


def _kilobytes(clips: Sequence[bytes]) -> float:
    """Mean size of a clip."""
    return sum(map(len, clips)) / len(clips) / 1000

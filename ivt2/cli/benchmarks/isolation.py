"""What it costs to decode in a process of its own."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ivt2.cli.benchmarks.clips import Footage, raw_footage, rendered
from ivt2.cli.benchmarks.loader import decoding
from ivt2.cli.benchmarks.timing import Figure, in_processes, interleaved, speed_figure


class IsolationSuite:
    """Clips decoded beside the process that reads them, against clips decoded in it.

    Args:
        num_readers: processes that read at once; each is a measurement of its own.
        num_frames: to decode of each clip.
        large_frames: frames that a clip of 640x360 has; one of 64x64 has ``num_frames``.
        num_clips: different clips, which take turns.
        num_items: clips of a turn.
        pairs: turns of each side.
    """

    def __init__(
        self,
        *,
        num_readers: Sequence[int],
        num_frames: int,
        large_frames: int,
        num_clips: int,
        num_items: int,
        pairs: int,
    ) -> None:
        self.num_readers = list(num_readers)
        self.num_frames = num_frames
        small = Footage(name="64x64", width=64, height=64, num_frames=num_frames, gop=8, bit_rate=100_000)
        self.footages = [small, raw_footage(large_frames)]
        self.num_clips = num_clips
        self.num_items = num_items
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of all measurements."""
        return 2 * self.pairs * len(self.footages) * len(self.num_readers)

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:
        """Yield the figures one by one."""
        for footage in self.footages:
            clips = rendered(folder, footage, self.num_clips)
            for num_readers in self.num_readers:
                sides = [
                    partial(
                        in_processes, partial(make, clips, self.num_frames), self.num_items, num_processes=num_readers
                    )
                    for make in (_isolated, decoding)
                ]
                readers = "one reader" if num_readers == 1 else f"{num_readers} readers at once"
                yield speed_figure(
                    f"{footage.name}, {self.num_frames} of {footage.num_frames} frames, {readers}",
                    interleaved(*sides, pairs=self.pairs, tick=tick),
                    sides=("isolated", "direct"),
                    items=self.num_items,
                    clock="wall",
                )


def _isolated(clips: Sequence[bytes], num_frames: int) -> Callable[[int], object]:
    from ivt2.data.isolation import DecoderProcess

    return decoding(clips, num_frames, process=DecoderProcess())

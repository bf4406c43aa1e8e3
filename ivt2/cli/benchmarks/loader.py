"""What a loader adds to its decoder: clips a second of both, with as many processes."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ivt2.cli.benchmarks.clips import Footage, prepared_footage, raw_footage, rendered, write_shards
from ivt2.cli.benchmarks.timing import Cost, Figure, Stopwatch, in_processes, interleaved, speed_figure
from ivt2.data.sampling import middle
from ivt2.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ivt2.data.isolation import DecoderProcess
    from ivt2.data.transforms import Transform
    from ivt2.datamodules.media_text import MediaTextDataModule

BATCH_SIZE = 4
_IMAGE_SIZE = 224
_READY_BATCHES = 2  # that each worker has been asked for beforehand


class LoaderSuite:
    """The training loader against the decoder called bare, and against decoder and transforms.

    Both sides take the same number of clips, the same frames of them, and count only once all processes are at work.

    Args:
        num_frames: of a clip; each is a measurement of its own.
        isolate: whether the loader decodes in a process beside each worker; each is a measurement of its own.
        num_workers: processes of either side.
        num_clips: different clips, which take turns.
        clip_frames: frames that a clip has.
        num_batches: batches of 4 clips that are measured in a turn.
        pairs: turns of each side.
    """

    def __init__(
        self,
        *,
        num_frames: Sequence[int],
        isolate: Sequence[bool],
        num_workers: int,
        num_clips: int,
        clip_frames: int,
        num_batches: int,
        pairs: int,
    ) -> None:
        self.num_frames = list(num_frames)
        self.isolate = list(isolate)
        self.num_workers = num_workers
        self.num_clips = num_clips
        self.footages = [prepared_footage(clip_frames), raw_footage(clip_frames)]
        self.num_batches = num_batches
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of all measurements."""
        return 2 * self.pairs * 2 * len(self.footages) * len(self.num_frames) * len(self.isolate)

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:
        """Yield the figures one by one."""
        for footage in self.footages:
            clips = rendered(folder, footage, self.num_clips)
            num_samples = samples_of(self.num_batches, self.num_workers)
            shards = write_shards(folder / "loader" / footage.name.replace(" ", "_"), clips, num_samples)
            for num_frames in self.num_frames:
                for isolate in self.isolate:
                    yield from self._compared(footage, clips, shards, num_frames, isolate=isolate, tick=tick)

    def _compared(
        self,
        footage: Footage,
        clips: Sequence[bytes],
        shards: Path,
        num_frames: int,
        *,
        isolate: bool,
        tick: Callable[[], object],
    ) -> Iterator[Figure]:
        loader = partial(
            loader_turn,
            shards,
            num_frames=num_frames,
            num_batches=self.num_batches,
            num_workers=self.num_workers,
            isolate=isolate,
        )
        items = self.num_batches * BATCH_SIZE
        what = f"{footage.name}, {num_frames} frames, {'isolated' if isolate else 'in the worker'}"
        for name, transforms in (("decoder", []), ("decoder and transforms", training_transforms())):
            make = partial(decoding, clips, num_frames, transforms)
            bare = partial(in_processes, make, items, num_processes=self.num_workers)
            yield speed_figure(
                f"{what}, against {name}",
                interleaved(loader, bare, pairs=self.pairs, tick=tick),
                sides=("loader", "bare"),
                items=items,
                clock="wall",
                floor=0.85,
                aim=0.95,
            )


def training_transforms() -> "list[Transform]":
    """Those of stages 2 and 3."""
    from ivt2.data.transforms import HorizontalFlip, RandomResizedCrop

    return [RandomResizedCrop(_IMAGE_SIZE), HorizontalFlip()]


def datamodule(shards: Path, *, num_frames: int, num_workers: int, isolate: bool) -> "MediaTextDataModule":
    """A datamodule that trains on one folder of shards, with frames that do not depend on chance."""
    from ivt2.data.synthetic import VOCABULARY_FILE
    from ivt2.data.tokenizer import WordPieceTokenizer
    from ivt2.datamodules.media_text import MediaTextDataModule

    return MediaTextDataModule(
        train={"clips": str(shards)},
        val={},
        tokenizer=WordPieceTokenizer(VOCABULARY_FILE, max_length=24),
        num_frames=num_frames,
        train_transforms=training_transforms(),
        eval_transforms=[],
        train_sampling=middle,
        global_batch_size=BATCH_SIZE,
        eval_batch_size=1,
        num_workers=num_workers,
        isolate=isolate,
        budget=0,
    )


def samples_of(num_batches: int, num_workers: int) -> int:
    """Samples that ``loader_turn`` needs: the first batches, the measured ones, and those under way at the end."""
    return (num_batches + 2 * _READY_BATCHES * num_workers) * BATCH_SIZE


def loader_turn(shards: Path, *, num_frames: int, num_batches: int, num_workers: int, isolate: bool) -> Cost:
    """Cost of some batches of a training loader whose workers are all at work.

    Args:
        shards: folder of at least ``samples_of(num_batches, num_workers)`` samples.
        num_frames: of a clip.
        num_batches: to measure.
        num_workers: of the loader.
        isolate: decode beside each worker.
    """
    data = datamodule(shards, num_frames=num_frames, num_workers=num_workers, isolate=isolate)
    made = _Counter()
    data.train_transforms.append(made)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    for _ in range(_READY_BATCHES * num_workers):
        next(batches)
    watch, before = Stopwatch(), made.value
    sizes = [len(next(batches)["key"]) for _ in range(num_batches)]
    cost, num_made = watch.read(), made.value - before
    batches.close()  # type: ignore[attr-defined]  # a generator; this ends the workers
    assert sizes == [BATCH_SIZE] * num_batches
    if not num_made:
        raise InputError(f"num_batches={num_batches}: all of them were ready when the measurement began; give more")
    # workers are some batches ahead, at the end by more or by less than at the beginning: what they made is what counts
    share = num_batches * BATCH_SIZE / num_made
    return Cost(cost.wall_s * share, cost.cpu_s * share)


class _Counter:
    """A transform that changes nothing and counts the clips of all workers."""

    def __init__(self) -> None:
        self._count = multiprocessing.get_context("fork").Value("q", 0)

    @property
    def value(self) -> int:
        """Clips so far."""
        return int(self._count.value)

    def __call__(self, video: "Tensor", generator: np.random.Generator) -> "Tensor":  # noqa: ARG002
        """Count one clip."""
        with self._count.get_lock():
            self._count.value += 1
        return video


def decoding(
    clips: Sequence[bytes],
    num_frames: int,
    transforms: "Sequence[Transform]" = (),
    process: "DecoderProcess | None" = None,
) -> Callable[[int], object]:
    """Make a function that decodes a clip, by number, as a loader does.

    Args:
        clips: as files; larger numbers begin again with the first.
        num_frames: to decode of each.
        transforms: applied to them.
        process: decodes in place of the process that calls.
    """
    from ivt2.data.decode import decode_video

    generator = np.random.default_rng(0)

    def decode(number: int) -> object:
        data = clips[number % len(clips)]
        video = decode_video(data, lambda length, _: middle(length, num_frames), by_time=True, process=process).frames
        for transform in transforms:
            video = transform(video, generator)
        return video

    return decode

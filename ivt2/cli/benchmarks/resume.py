"""How long a resumed run waits for its first batch, in a set of a hundred million samples."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivt2.cli.benchmarks.timing import Cost, Figure, Quartiles, Stopwatch, interleaved
from ivt2.errors import InputError

if TYPE_CHECKING:
    from ivt2.datamodules.media_text import MediaTextDataModule

_BATCH_SIZE = 64
_NUM_FRAMES = 4
_IMAGE_SIZE = 32
_MAX_LINKS = 50_000  # names of one file; ext4 allows 65,000


class ResumeSuite:
    """The first batch of a resumed run against the first of a new one: opening, plan, indexes, workers, decoding.

    The set is simulated: all shards are names of one file, and all samples one small clip. What reading it costs on a
    disk or a network is not in the figure.

    Args:
        num_shards: of the set; each is a measurement of its own.
        num_samples: of the set.
        step: at which the run goes on.
        num_workers: of the loader.
        pairs: turns of each side.
    """

    def __init__(self, *, num_shards: Sequence[int], num_samples: int, step: int, num_workers: int, pairs: int) -> None:
        for number in num_shards:
            if number < 1 or num_samples % number or num_samples // _BATCH_SIZE <= step:
                raise InputError(
                    f"num_shards={number}, num_samples={num_samples}, step={step}: the samples must divide by the "
                    f"shards and fill more than {step} batches of {_BATCH_SIZE}"
                )
        self.num_shards = list(num_shards)
        self.num_samples = num_samples
        self.step = step
        self.num_workers = num_workers
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of all measurements."""
        return 2 * self.pairs * len(self.num_shards)

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:
        """Yield the figures one by one."""
        for num_shards in self.num_shards:
            samples = self.num_samples // num_shards
            shards = _simulated(folder / "resume" / f"{num_shards}_shards_of_{samples}", num_shards, samples)
            state = self._state(shards)
            comparison = interleaved(
                partial(self._first_batch, shards, state),
                partial(self._first_batch, shards, None),
                pairs=self.pairs,
                tick=tick,
            )
            yield Figure(
                what=f"{num_shards} shards of {samples} samples",
                value=_wall_s(comparison.a),
                unit="s",
                floor=20.0,
                aim=2.0,
                details={
                    "CPU s": Quartiles.of([cost.cpu_s for cost in comparison.a]).median,
                    "s of a new run": _wall_s(comparison.b).median,
                },
            )

    def _state(self, shards: Path) -> dict[str, Any]:
        """What a checkpoint of the step holds."""
        data = self._datamodule(shards)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.load_state_dict({**loader.state_dict(), "position": self.step})
        return data.state_dict()

    def _first_batch(self, shards: Path, state: dict[str, Any] | None) -> Cost:
        watch = Stopwatch()
        data = self._datamodule(shards)
        data.setup("fit")
        if state is not None:
            data.load_state_dict(state)
        batches = iter(data.train_dataloader())
        num_clips = len(next(batches)["key"])
        cost = watch.read()
        batches.close()  # type: ignore[attr-defined]  # a generator; this ends the workers
        assert num_clips == _BATCH_SIZE
        assert data.state_dict()["loader"]["position"] == (1 if state is None else self.step + 1)
        return cost

    def _datamodule(self, shards: Path) -> "MediaTextDataModule":
        from ivt2.data.synthetic import VOCABULARY_FILE
        from ivt2.data.tokenizer import WordPieceTokenizer
        from ivt2.datamodules.media_text import MediaTextDataModule

        return MediaTextDataModule(
            train={"clips": str(shards)},
            val={},
            tokenizer=WordPieceTokenizer(VOCABULARY_FILE, max_length=24),
            num_frames=_NUM_FRAMES,
            train_transforms=[],
            eval_transforms=[],
            global_batch_size=_BATCH_SIZE,
            eval_batch_size=1,
            num_workers=self.num_workers,
            budget=0,
        )


def _wall_s(costs: Sequence[Cost]) -> Quartiles:
    return Quartiles.of([cost.wall_s for cost in costs])


def _simulated(folder: Path, num_shards: int, num_samples: int) -> Path:
    """A folder of equal shards with a manifest, that takes the room of one of them."""
    from ivt2.data.manifest import MANIFEST_NAME, Manifest
    from ivt2.data.shards import ShardWriter
    from ivt2.data.synthetic import make_scenes
    from ivt2.data.synthetic_media import encode_scene

    if (folder / MANIFEST_NAME).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    scene = make_scenes("train", 1, 0)[0]
    clip, facts = encode_scene(scene, _IMAGE_SIZE), {"caption": scene.captions[0]}
    with ShardWriter(folder / "one", max_samples=num_samples, max_bytes=1 << 40) as writer:
        for number in range(num_samples):
            writer.write(f"{number:06d}", {"mp4": clip, "json": facts})
    only = writer.manifest.shards[0]
    shards = tuple(replace(only, name=f"shard-{number:06d}.tar") for number in range(num_shards))
    _multiply(folder / "one" / only.name, [folder / shard.name for shard in shards])
    _multiply(folder / "one" / only.index_name, [folder / shard.index_name for shard in shards])
    shutil.rmtree(folder / "one")
    (folder / MANIFEST_NAME).write_text(Manifest(shards).to_json())
    return folder


def _multiply(original: Path, names: Sequence[Path]) -> None:
    """Give a file many names, and a copy of it where it has too many."""
    for number, name in enumerate(names):
        if number % _MAX_LINKS == 0:
            shutil.copyfile(original, name)
            original = name
        else:
            os.link(original, name)

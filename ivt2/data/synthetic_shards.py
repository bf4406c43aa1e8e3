"""Shards of the embedded dataset: written in parallel, once, and again only when something about them changes.

Beside the shards and their manifest lies ``synthetic.json``: what they were made from and, once they are whole, the
hash of their manifest. Without that file a folder belongs to someone else and is never overwritten.
"""

import fcntl
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ivt2.data.manifest import Manifest, read_manifest
from ivt2.data.progress import progress_bar
from ivt2.data.shards import ShardWriter
from ivt2.data.synthetic import GENERATOR_VERSION, Scene, Split, make_scenes
from ivt2.data.synthetic_media import encode_scene
from ivt2.errors import InputError

FACTS_NAME = "synthetic.json"
MIN_IMAGE_SIZE = 32
_SHARD_BYTES = 1 << 30
_CHUNK = 8


def write_synthetic(
    folder: str | Path,
    *,
    split: Split,
    num_clips: int,
    seed: int,
    image_size: int = 64,
    samples_per_shard: int = 128,
    twins: bool = False,
    num_processes: int = 2,
    progress: bool = False,
) -> Manifest:
    """Write the clips of a split as shards; does nothing when the folder already holds exactly these.

    Each sample has an ``mp4`` (H.264 and AAC) and a ``json`` member (``Scene.facts``). Processes that want the same
    folder wait for each other.

    Args:
        folder: where to write; made when absent.
        split: train, val or test; no combination of attributes occurs in two of them, whatever the seeds.
        num_clips: how many.
        seed: changes order and free details.
        image_size: side of the frames in pixels, even.
        samples_per_shard: samples after which a new shard begins.
        twins: write the variant in which two clips differ in sound alone, see ``make_scenes``.
        num_processes: how many render and encode; the bytes do not depend on it.
        progress: show a bar with rate and time left on standard error.

    Returns:
        The manifest of the folder.

    Raises:
        InputError: when an argument cannot be used or the folder holds shards of something else.
    """
    folder = Path(folder)
    if image_size < MIN_IMAGE_SIZE or image_size % 2:
        raise InputError(f"image_size={image_size}: H.264 clips need an even size; give {MIN_IMAGE_SIZE} or more")
    if num_clips < 1 or num_processes < 1:
        raise InputError(f"num_clips={num_clips}, num_processes={num_processes}: both must be at least 1")
    scenes = make_scenes(split, num_clips, seed, twins=twins)
    facts: dict[str, object] = {
        "generator": GENERATOR_VERSION,
        "split": split,
        "num_clips": num_clips,
        "seed": seed,
        "image_size": image_size,
        "samples_per_shard": samples_per_shard,
        **({"twins": True} if twins else {}),  # folders from before there were any stay valid
    }
    with _locked(folder):
        earlier = _current(folder, facts)
        if earlier is not None:
            return earlier
        if not (folder / FACTS_NAME).exists() and any(folder.glob("*.tar")):
            raise InputError(f"{folder}: holds shards that are not of the embedded dataset; choose another folder")
        _write_facts(folder, facts, manifest_hash=None)
        writer = ShardWriter(folder, max_samples=samples_per_shard, max_bytes=_SHARD_BYTES, overwrite=True)
        with writer, _encoded(scenes, image_size, num_processes) as clips:
            for scene, clip in _tracked(scenes, clips, f"writing {split} clips", shown=progress):
                writer.write(scene.key, {"mp4": clip, "json": scene.facts()}, scene.duration_s)
        _write_facts(folder, facts, manifest_hash=writer.manifest.hash)
        return writer.manifest


def _current(folder: Path, facts: dict[str, object]) -> Manifest | None:
    """The folder's manifest when it was made from these facts and its shards are all there."""
    try:
        recorded = json.loads((folder / FACTS_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    manifest = read_manifest(folder)
    if manifest is None or recorded != {**facts, "manifest": manifest.hash}:
        return None
    paths = [(folder / shard.name, shard.bytes) for shard in manifest.shards]
    return manifest if all(path.is_file() and path.stat().st_size == size for path, size in paths) else None


def _write_facts(folder: Path, facts: dict[str, object], *, manifest_hash: str | None) -> None:
    """Without a hash: the folder is ours but not whole."""
    temporary = folder / f".{FACTS_NAME}.partial"
    temporary.write_text(json.dumps({**facts, "manifest": manifest_hash}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / FACTS_NAME)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder alone among the processes of this machine."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".synthetic.lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _encoded(scenes: Sequence[Scene], image_size: int, num_processes: int) -> Iterator[Iterator[bytes]]:
    """The clips of the scenes, in their order."""
    encode: Callable[[Scene], bytes] = partial(encode_scene, image_size=image_size)
    if num_processes == 1:
        yield map(encode, scenes)
        return
    # a forked process starts at once; a spawned one would import the program's main module with all its frameworks
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context(method)) as pool:
        try:
            yield pool.map(encode, scenes, chunksize=_CHUNK)
        finally:
            pool.shutdown(cancel_futures=True)


def _tracked(
    scenes: Sequence[Scene], clips: Iterator[bytes], description: str, *, shown: bool
) -> Iterator[tuple[Scene, bytes]]:
    """Pairs of scene and clip, with a progress bar."""
    with progress_bar("clips", shown=shown) as bar:
        task = bar.add_task(description, total=len(scenes))
        for scene, clip in zip(scenes, clips, strict=True):
            yield scene, clip
            bar.advance(task)

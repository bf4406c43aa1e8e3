"""Index files and a manifest for shards that have none: those of other tools and of version 1. No shard is changed."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ivt2.data.files import replace_file
from ivt2.data.manifest import MANIFEST_NAME, PACKING_NAME, Manifest, ShardInfo, digest, read_manifest, require_names
from ivt2.data.shard_index import SampleTable
from ivt2.data.tar_index import scan
from ivt2.data.workers import in_order
from ivt2.errors import InputError


@dataclass(frozen=True)
class IndexedSet:
    """What an indexed folder holds.

    Args:
        manifest: as it lies in the folder.
        unusable: samples that cannot be read, by reason.
        damaged: shards that end too early or have something unreadable between their members.
    """

    manifest: Manifest
    unusable: Counter[str] = field(default_factory=Counter)
    damaged: tuple[str, ...] = ()


class _IndexedShard(NamedTuple):
    info: ShardInfo
    unusable: Counter[str]
    complete: bool


def index_shards(
    folder: str | Path, *, num_processes: int = 1, on_shard: Callable[[str], object] = lambda _: None
) -> IndexedSet:
    """Write an index beside each shard of a folder and, at the end, the manifest.

    A manifest that is there stays what it is, but for the hashes of index files that it did not have. Doing it again
    changes nothing.

    Args:
        folder: of the shards (``*.tar``).
        num_processes: how many read.
        on_shard: called with the name of each shard that was done.

    Returns:
        What the folder holds.

    Raises:
        InputError: when it holds no shards, one of them has no readable sample or is not the one of the manifest, or
            the folder cannot be written.
    """
    folder = Path(folder)
    names = shard_names(folder)
    earlier = read_manifest(folder)
    if earlier is not None:
        promised_names = [shard.name for shard in earlier.shards]
        require_names(folder, names, promised_names)
        names = promised_names
    promised: Sequence[ShardInfo | None] = [None] * len(names) if earlier is None else earlier.shards
    tasks = list(zip(names, promised, strict=True))
    shards: list[ShardInfo] = []
    unusable: Counter[str] = Counter()
    damaged: list[str] = []
    with closing(in_order(partial(_index_shard, folder), tasks, num_processes=num_processes)) as results:
        for shard in results:
            shards.append(shard.info)
            unusable += shard.unusable
            damaged += [] if shard.complete else [shard.info.name]
            on_shard(shard.info.name)
    manifest = Manifest(tuple(shards)) if earlier is None else replace(earlier, shards=tuple(shards))
    if manifest != earlier:
        _write(folder / MANIFEST_NAME, manifest.to_json().encode())
    return IndexedSet(manifest, unusable, tuple(damaged))


def shard_names(folder: Path) -> list[str]:
    """Return the shards of a folder, in the order that numbers their samples.

    Raises:
        InputError: when there are none, or they are not finished.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of the shards")
    if (folder / PACKING_NAME).exists() and not (folder / MANIFEST_NAME).exists():
        raise InputError(
            f"{folder}: is being packed; let `python -m ivt2.cli.shards` finish it, which writes the index"
        )
    names = sorted(path.name for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: holds no shards (*.tar); give the folder of the shards")
    return names


def _index_shard(folder: Path, task: tuple[str, ShardInfo | None]) -> _IndexedShard:
    """Hash a shard, go through its headers and write its index.

    Raises:
        InputError: it is not the promised one, or its index cannot be written.
    """
    name, promised = task
    path = folder / name
    try:
        with path.open("rb") as file:
            sha256, size = digest(file), file.tell()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its rights") from error
    found = scan(path)
    num_samples = len(found.members)
    if num_samples == len(found.unusable):
        raise InputError(f"{path}: has no readable sample; restore it or remove it")
    content = SampleTable.of(found, num_samples).to_bytes(shard_bytes=size)
    info = ShardInfo(
        name=name,
        sha256=sha256,
        bytes=size,
        samples=num_samples,
        duration_s=0.0 if promised is None else promised.duration_s,
        index_sha256=hashlib.sha256(content).hexdigest(),
    )
    same = promised is None or promised in {info, replace(info, index_sha256=None)}
    if not same:
        raise InputError(
            f"{path}: is not the one that {MANIFEST_NAME} describes; restore it, or remove {MANIFEST_NAME} to describe "
            "the shards as they are"
        )
    _write(folder / info.index_name, content)
    return _IndexedShard(info, Counter(found.unusable.values()), found.complete)


def _write(path: Path, content: bytes) -> None:
    """Write a file unless it is there already."""
    try:
        if not path.is_file() or path.read_bytes() != content:
            replace_file(path, content)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free some space or check the rights"
        ) from error

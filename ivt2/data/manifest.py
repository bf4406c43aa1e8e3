"""What a folder of shards holds: ``manifest.json``, written last, so that a folder with a manifest is complete."""

import hashlib
import json
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ivt2.data.workers import in_order
from ivt2.errors import InputError

MANIFEST_NAME = "manifest.json"
PACKING_NAME = ".packing"
"""Folder beside shards that are being packed; it goes when the manifest is there."""
MANIFEST_VERSION = 2
"""Version 1 had no index files and no sources."""

_READABLE = (1, MANIFEST_VERSION)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One line of the manifest.

    Args:
        name: file name within the folder.
        sha256: of the whole file, in hex.
        bytes: size of the file.
        samples: how many it holds.
        duration_s: playing time of all its clips, as far as it was known, in seconds.
        index_sha256: of the shard's index file, in hex; None when it has none.
    """

    name: str
    sha256: str
    bytes: int
    samples: int
    duration_s: float
    index_sha256: str | None = None

    @property
    def index_name(self) -> str:
        """Name of the shard's index file within the folder."""
        return self.name.removesuffix(".tar") + ".index"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that the shards were made from, such as the annotations.

    Args:
        name: of the file, without its folder.
        sha256: of the file, in hex.
        bytes: size of the file.
    """

    name: str
    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> "SourceFile":
        """Hash a file.

        Raises:
            InputError: when it cannot be read.
        """
        try:
            with path.open("rb") as file:
                return cls(name=path.name, sha256=digest(file), bytes=file.tell())
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from error


@dataclass(frozen=True)
class Manifest:
    """All shards of a folder, in the order that numbers their samples."""

    shards: tuple[ShardInfo, ...]
    sources: tuple[SourceFile, ...] = ()
    packing: Mapping[str, Any] | None = None
    """What the shards were packed with: options, preparation, and a hash of the records; None where nobody said."""

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def hash(self) -> str:
        """Fingerprint of the content: equal exactly when names, bytes and order of the shards are."""
        lines = "\n".join(f"{shard.name} {shard.sha256} {shard.samples}" for shard in self.shards)
        return hashlib.sha256(lines.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        content = {
            "version": MANIFEST_VERSION,
            "tool": tool(),
            "samples": self.samples,
            "bytes": sum(shard.bytes for shard in self.shards),
            "duration_s": round(sum(shard.duration_s for shard in self.shards), 3),
            "sources": [asdict(source) for source in self.sources],
            **({} if self.packing is None else {"packing": dict(self.packing)}),
            "shards": [asdict(shard) for shard in self.shards],
        }
        return json.dumps(content, indent=1) + "\n"


def tool() -> str:
    """Return name and version of what writes shards."""
    return f"ivt2 {version('ivt2')}"


def read_manifest(folder: Path) -> Manifest | None:
    """Read ``manifest.json`` of a folder.

    Returns:
        None when the folder has none.

    Raises:
        InputError: when the file is not a manifest of this tool.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its rights") from error
    return parse_manifest(content, str(path))


def require_names(folder: Path, found: Collection[str], promised: Collection[str]) -> None:
    """Refuse a folder that holds other shards than its manifest names.

    Args:
        folder: of the shards.
        found: names of those that are there.
        promised: names that stand in the manifest.

    Raises:
        InputError: naming the first that is too many or missing.
    """
    if unlisted := sorted(set(found) - set(promised)):
        raise InputError(f"{folder / unlisted[0]}: is not in {MANIFEST_NAME}; move it to a folder of its own")
    if missing := sorted(set(promised) - set(found)):
        raise InputError(f"{folder / missing[0]}: is in {MANIFEST_NAME} but not there; restore it")


def parse_manifest(content: bytes, path: str) -> Manifest:
    """Read the text of a manifest, which may come from anywhere.

    Args:
        content: of the file.
        path: where it was read, for messages.

    Raises:
        InputError: when it is not a manifest of this tool.
    """
    try:
        facts = json.loads(content)
        number = facts["version"]
        if number in _READABLE:
            shards = tuple([ShardInfo(**shard) for shard in facts["shards"]])
            _check(shards)
            sources = tuple(SourceFile(**source) for source in facts.get("sources", ()))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: is not a shard manifest ({error}); move it or write the shards again") from error
    if number not in _READABLE:
        raise InputError(f"{path}: has version {number}, this ivt2 reads 1 to {MANIFEST_VERSION}; update ivt2")
    names = [shard.name for shard in shards]
    letters = "".join(names)
    if "/" in letters or "\0" in letters or not {"", ".", ".."}.isdisjoint(names):
        outside = next(name for name in names if "/" in name or "\0" in name or name in {"", ".", ".."})
        raise InputError(f"{path}: names a shard outside its folder ({outside}); write the shards again")
    if len(set(names)) != len(names):
        raise InputError(f"{path}: names a shard twice; write the shards again")
    return Manifest(shards, sources, facts.get("packing"))


def _check(shards: Sequence[ShardInfo]) -> None:
    """Check the types of all fields, one field after the other: a set may have a hundred thousand shards."""

    def types(name: str) -> set[type]:
        return set(map(type, map(attrgetter(name), shards)))

    if not (types("name") | types("sha256") <= {str} and types("index_sha256") <= {str, type(None)}):
        raise TypeError("name and hashes of a shard are text")
    if not types("bytes") | types("samples") <= {int} or any(s.bytes < 0 or s.samples < 0 for s in shards):
        raise ValueError("bytes and samples of a shard are whole numbers")
    if not types("duration_s") <= {int, float}:
        raise TypeError("duration_s of a shard is a number")


class ShardCheck(NamedTuple):
    """Result of reading one shard whole."""

    name: str
    problem: str | None
    """None when size and hash are those of the manifest."""


def verify(folder: str | Path, *, num_processes: int = 1) -> Generator[ShardCheck, None, None]:
    """Compare every shard of a folder, and its index, with the manifest, byte for byte; yields as it goes on.

    Args:
        folder: of the shards.
        num_processes: how many read.

    Raises:
        InputError: when the folder has no manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(
            f"{folder}: has no {MANIFEST_NAME} to compare with; write the shards with `python -m ivt2.cli.shards`"
        )
    yield from in_order(partial(_compared, folder), manifest.shards, num_processes=num_processes)


def _compared(folder: Path, shard: ShardInfo) -> ShardCheck:
    return ShardCheck(shard.name, _difference(folder / shard.name, shard) or _index_difference(folder, shard))


def digest(file: BinaryIO) -> str:
    """SHA-256 of the rest of a file, in hex."""
    state = hashlib.sha256()
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()


def _difference(path: Path, shard: ShardInfo) -> str | None:
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{size} bytes instead of {shard.bytes}"
    with path.open("rb") as file:
        return None if digest(file) == shard.sha256 else "sha256 differs"


def _index_difference(folder: Path, shard: ShardInfo) -> str | None:
    path = folder / shard.index_name
    if shard.index_sha256 is None:
        return None
    if not path.is_file():
        return "index missing"
    with path.open("rb") as file:
        return None if digest(file) == shard.index_sha256 else "sha256 of the index differs"

"""Shards of samples: WebDataset tar files with a manifest, written once and read by place.

A shard holds members ``<key>.<type>`` one sample after the other. ``manifest.json`` is written last: a folder with a
manifest is complete, and its hash names the data exactly. Shards of other tools, without a manifest, are read too.
"""

import hashlib
import io
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from typing_extensions import Self

from ivt2.data.ledger import SampleError
from ivt2.data.tar_index import MEMBER_TYPES, SampleTable, TarIndex, scan
from ivt2.errors import InputError

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1

_WRITER = "`python -m ivt2.cli.shards`"

_log = logging.getLogger(__name__)

Member = bytes | str | dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One line of the manifest.

    Args:
        name: file name within the folder.
        sha256: of the whole file, in hex.
        bytes: size of the file.
        samples: how many it holds.
        duration_s: playing time of all its clips, as far as it was known, in seconds.
    """

    name: str
    sha256: str
    bytes: int
    samples: int
    duration_s: float


@dataclass(frozen=True)
class Manifest:
    """All shards of a folder, in the order that numbers their samples."""

    shards: tuple[ShardInfo, ...]

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
            "tool": "ivt2",
            "samples": self.samples,
            "bytes": sum(shard.bytes for shard in self.shards),
            "duration_s": round(sum(shard.duration_s for shard in self.shards), 3),
            "shards": [asdict(shard) for shard in self.shards],
        }
        return json.dumps(content, indent=1) + "\n"


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
        content = json.loads(path.read_bytes())
        version = content["version"]
        shards = tuple(ShardInfo(**shard) for shard in content["shards"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path}: is not a shard manifest ({error}); move it or write the shards again") from error
    if version != MANIFEST_VERSION:
        raise InputError(f"{path}: has version {version}, this ivt2 reads {MANIFEST_VERSION}; write the shards again")
    for shard in shards:
        if Path(shard.name).name != shard.name:
            raise InputError(f"{path}: names a shard outside its folder ({shard.name}); write the shards again")
    return Manifest(shards)


class ShardCheck(NamedTuple):
    """Result of reading one shard whole."""

    name: str
    problem: str | None
    """None when size and hash are those of the manifest."""


def verify(folder: str | Path) -> Iterator[ShardCheck]:
    """Compare every shard of a folder with the manifest, byte for byte; yields as it goes on.

    Raises:
        InputError: when the folder has no manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: has no {MANIFEST_NAME} to compare with; write the shards with {_WRITER}")
    for shard in manifest.shards:
        yield ShardCheck(shard.name, _difference(folder / shard.name, shard))


def _difference(path: Path, shard: ShardInfo) -> str | None:
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{size} bytes instead of {shard.bytes}"
    with path.open("rb") as file:
        return None if _digest(file) == shard.sha256 else "sha256 differs"


def _digest(file: BinaryIO) -> str:
    state = hashlib.sha256()
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()


class _OpenShard:
    """A shard being written under a temporary name."""

    def __init__(self, folder: Path, name: str) -> None:
        from webdataset import TarWriter

        self.path = folder / name
        self.temporary = folder / f".{name}.partial"
        self.samples = 0
        self.bytes = 0
        self.duration_s = 0.0
        self._file = self.temporary.open("w+b")
        # fixed owner, mode and time: equal samples give equal bytes; PAX takes names of any length
        self._tar = TarWriter(self._file, encoder=False, mtime=0, user="", group="", format="PAX_FORMAT")

    def write(self, key: str, members: Mapping[str, bytes], duration_s: float) -> None:
        self._tar.write({"__key__": key, **members})
        self.samples += 1
        self.bytes += sum(map(len, members.values()))
        self.duration_s += duration_s

    def finish(self) -> ShardInfo:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.seek(0)
        digest = _digest(self._file)
        self._file.close()
        return ShardInfo(
            name=self.path.name,
            sha256=digest,
            bytes=size,
            samples=self.samples,
            duration_s=round(self.duration_s, 3),
        )

    def discard(self) -> None:
        with suppress(OSError):
            self._tar.close()
            self._file.close()
        self.temporary.unlink(missing_ok=True)


class ShardWriter:
    """Write samples into numbered shards and, at the end of the ``with`` block, the manifest.

    Equal samples in equal order give equal bytes. Each shard is written under a temporary name and renamed when
    whole; after an exception there is no manifest. Writing the same content again into a finished folder changes
    nothing; other content is refused.

    Args:
        folder: where to write; made when absent.
        max_samples: samples after which a new shard begins.
        max_bytes: bytes of members after which a new shard begins; one sample may be larger.
        prefix: shards are called ``<prefix>-000000.tar`` and so on.
        overwrite: replace the shards of this prefix that the folder holds.

    Raises:
        InputError: when the folder cannot be written or holds other shards.
    """

    def __init__(
        self, folder: str | Path, *, max_samples: int, max_bytes: int, prefix: str = "shard", overwrite: bool = False
    ) -> None:
        if max_samples < 1 or max_bytes < 1:
            raise InputError(f"max_samples={max_samples}, max_bytes={max_bytes}: both must be at least 1")
        self.folder = Path(folder)
        self.max_samples = max_samples
        self.max_bytes = max_bytes
        self.prefix = prefix
        self._overwrite = overwrite
        self._shards: list[ShardInfo] = []
        self._keys: set[str] = set()
        self._open: _OpenShard | None = None
        self._earlier = self._prepare()

    @property
    def manifest(self) -> Manifest:
        """The shards finished so far."""
        return Manifest(tuple(self._shards))

    def write(self, key: str, members: Mapping[str, Member], duration_s: float | None = None) -> None:
        """Append a sample.

        Args:
            key: name of the sample, unique in the folder; no dots or slashes, at which WebDataset would cut it.
            members: content by type (mp4, json, ...); a str is written as UTF-8, a dict as JSON.
            duration_s: playing time in seconds, for the totals of the manifest.

        Raises:
            InputError: when the key, a type or a content is not allowed, or the disk refuses.
        """
        _check_key(key)
        if key in self._keys:
            raise InputError(f"key {key!r}: is used twice; give every sample its own key")
        encoded = {kind: _encode(key, kind, content) for kind, content in members.items()}
        if not encoded:
            raise InputError(f"sample {key!r}: has no members; give it a video and a caption")
        try:
            self._shard_for(sum(map(len, encoded.values()))).write(key, encoded, duration_s or 0.0)
        except OSError as error:
            raise InputError(f"{self.folder}: {error.strerror}; free some space or choose another folder") from error
        self._keys.add(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            if self._open is not None:
                self._open.discard()
            return
        self._close_shard()
        if not self._shards:
            raise InputError(f"{self.folder}: no sample was written; check the annotations and where the media lie")
        if self._earlier is not None and not self._overwrite:
            if len(self._earlier.shards) != len(self._shards):
                raise InputError(self._holds_others())
            return
        _replace_text(self.folder / MANIFEST_NAME, self.manifest.to_json())
        written = {shard.name for shard in self._shards}
        for path in self.folder.glob(f"{self.prefix}-??????.tar"):
            if path.name not in written:
                path.unlink()

    def _prepare(self) -> Manifest | None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            earlier = None if self._overwrite else read_manifest(self.folder)
            if earlier is None and not self._overwrite and any(self.folder.glob("*.tar")):
                raise InputError(self._holds_others())
            for path in self.folder.glob(".*.tar.partial"):
                path.unlink()
            if self._overwrite:
                (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
            (self.folder / ".write.partial").touch()
            (self.folder / ".write.partial").unlink()
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror}); choose another folder") from error
        return earlier

    def _holds_others(self) -> str:
        return f"{self.folder}: already holds other shards; choose another folder or set overwrite=true"

    def _shard_for(self, size: int) -> _OpenShard:
        shard = self._open
        if shard is not None and (shard.samples >= self.max_samples or shard.bytes + size > self.max_bytes):
            self._close_shard()
            shard = None
        if shard is None:
            shard = self._open = _OpenShard(self.folder, f"{self.prefix}-{len(self._shards):06d}.tar")
        return shard

    def _close_shard(self) -> None:
        if self._open is None:
            return
        shard, self._open = self._open, None
        info = shard.finish()
        number = len(self._shards)
        if self._earlier is None:
            shard.temporary.replace(shard.path)
        else:
            shard.discard()
            if number >= len(self._earlier.shards) or self._earlier.shards[number] != info:
                raise InputError(self._holds_others())
        self._shards.append(info)


@dataclass(frozen=True)
class RawSample:
    """One sample as stored: nothing is decoded yet."""

    key: str
    members: dict[str, bytes]
    shard: str
    index: int
    """Position in the shard set."""


class ShardSet:
    """The samples of a folder of shards, read by place; build it with ``ShardSet.open``.

    Every sample that the manifest promises has a number, whether its bytes are still there or not, so that damage to
    one shard does not renumber the rest. Safe to use in forked workers: reads carry their offset and share no cursor.
    """

    _MAX_OPEN = 32

    def __init__(self, folder: Path, shards: Mapping[str, int], table: SampleTable, manifest_hash: str) -> None:
        self.folder = folder
        self.names = tuple(shards)
        self.samples_per_shard = tuple(shards.values())
        self.manifest_hash = manifest_hash
        self._first = np.concatenate([[0], np.cumsum(self.samples_per_shard, dtype=np.int64)])
        self._table = table
        self._files: OrderedDict[int, int] = OrderedDict()

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Index every shard of a folder and compare sizes with its manifest, if it has one.

        Raises:
            InputError: when the folder holds no shards, a shard is missing, is not a tar file, has no readable
                sample or is not the one of the manifest.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; correct the path or write shards there with {_WRITER}")
        manifest = read_manifest(folder)
        found = sorted(path.name for path in folder.glob("*.tar") if not path.name.startswith("."))
        names = found if manifest is None else [shard.name for shard in manifest.shards]
        if not names:
            raise InputError(f"{folder}: holds no shards (*.tar); write some with {_WRITER}")
        if unlisted := sorted(set(found) - set(names)):
            raise InputError(f"{folder / unlisted[0]}: is not in {MANIFEST_NAME}; move it to a folder of its own")
        if missing := sorted(set(names) - set(found)):
            raise InputError(f"{folder / missing[0]}: is in {MANIFEST_NAME} but not there; restore it")
        promised = {} if manifest is None else {shard.name: shard for shard in manifest.shards}
        table, shards = SampleTable(), {}
        for name in names:
            index = scan(folder / name)
            shards[name] = _count(folder / name, index, promised.get(name))
            table.append(index, shards[name])
        return cls(folder, shards, table, _fingerprint(shards, table) if manifest is None else manifest.hash)

    def __len__(self) -> int:
        return int(self._first[-1])

    def shard_of(self, index: int) -> int:
        """Number of the shard that holds a sample."""
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def key(self, index: int) -> str:
        """Name of a sample; ``<shard>#<number>`` where the damage took the name too."""
        shard = self.shard_of(index)
        number = index - int(self._first[shard])
        return self._table.key(index) or f"{self.names[shard]}#{number}"

    def types(self, index: int) -> tuple[str, ...]:
        """Types of a sample's members, without reading them."""
        return tuple(self._table.spans(index))

    def problem(self, index: int) -> str | None:
        """Why a sample cannot be read; None when it can."""
        return self._table.reason(index)

    def read(self, index: int) -> RawSample:
        """Read all members of a sample.

        Args:
            index: position in the set, from 0.

        Raises:
            SampleError: when the shard lost the sample; the reason is ``problem(index)`` or ``shard_changed``.
            IndexError: when the set is shorter.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if (reason := self.problem(index)) is not None:
            raise SampleError(reason)
        shard = self.shard_of(index)
        file = self._file(shard)
        members = {kind: os.pread(file, span.size, span.offset) for kind, span in self._table.spans(index).items()}
        if any(len(members[kind]) != span.size for kind, span in self._table.spans(index).items()):
            raise SampleError("shard_changed")
        return RawSample(self.key(index), members, self.names[shard], index)

    def close(self) -> None:
        """Close the shards' files; they open again when needed."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            try:
                self._files[shard] = os.open(self.folder / self.names[shard], os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise SampleError("shard_unreadable") from error
        self._files.move_to_end(shard)
        if len(self._files) > self._MAX_OPEN:
            os.close(self._files.popitem(last=False)[1])
        return self._files[shard]


def _count(path: Path, index: TarIndex, promised: ShardInfo | None) -> int:
    """How many samples a shard counts for, damage included."""
    found = len(index.members)
    if found == len(index.unusable):
        raise InputError(f"{path}: has no readable sample; restore it or remove it and write the shards again")
    if promised is None:
        if not index.complete:
            _log.warning("%s: is damaged and no manifest says how much is lost; %d samples found", path, found)
        return found
    intact = index.complete and not index.unusable and found == promised.samples
    if found > promised.samples or (intact and path.stat().st_size != promised.bytes):
        raise InputError(f"{path}: is not the one that {MANIFEST_NAME} describes; restore it or write the shards again")
    return promised.samples


def _fingerprint(shards: Mapping[str, int], table: SampleTable) -> str:
    """What identifies shards without a manifest: names, counts, and place and size of every member."""
    lines = "\n".join([*(f"{name} {count}" for name, count in shards.items()), table.fingerprint()])
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _check_key(key: str) -> None:
    if not key or not key.isprintable() or any(letter in key for letter in "./\\"):
        raise InputError(f"key {key!r}: must be printable text without dots and slashes; replace them, with _ say")


def _encode(key: str, kind: str, content: Member) -> bytes:
    if kind not in MEMBER_TYPES:
        raise InputError(f"member {key}.{kind}: type must be one of {', '.join(MEMBER_TYPES)}; convert or omit it")
    try:
        if isinstance(content, dict):
            content = json.dumps(content, ensure_ascii=False, allow_nan=False)
        if isinstance(content, str):
            content = content.encode()
        if kind == "npy":
            np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, TypeError, EOFError) as error:
        raise InputError(f"member {key}.{kind}: cannot be written ({error}); correct it or leave it out") from error
    return content


def _replace_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, even after a power cut."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)

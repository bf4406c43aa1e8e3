"""Shards of samples: WebDataset tar files with a manifest, written once and read by place.

A shard holds members ``<key>.<type>`` one sample after the other; beside it lies an index of them. Shards without an
index, or of other tools, without a manifest, are read too: their headers are gone through first.
"""

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from ivt2.data.files import replace_file
from ivt2.data.ledger import SampleError
from ivt2.data.manifest import (
    MANIFEST_NAME,
    PACKING_NAME,
    Manifest,
    ShardInfo,
    SourceFile,
    read_manifest,
    require_names,
)
from ivt2.data.remote import RemoteFiles, ShardCache, is_address
from ivt2.data.shard_file import Member, OpenShard, check_key, encode, sync_shards
from ivt2.data.shard_index import SampleTable, fingerprint
from ivt2.data.tar_index import BLOCK, Span, TarIndex, is_header, scan
from ivt2.errors import InputError

_WRITER = "`python -m ivt2.cli.shards`"

_log = logging.getLogger(__name__)


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
        sources: files that the samples come from, such as the annotations; the manifest names them with their hash.

    Raises:
        InputError: when the folder cannot be written or holds other shards, or a source cannot be read.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_samples: int,
        max_bytes: int,
        prefix: str = "shard",
        overwrite: bool = False,
        sources: Sequence[str | Path] = (),
    ) -> None:
        if max_samples < 1 or max_bytes < 1:
            raise InputError(f"max_samples={max_samples}, max_bytes={max_bytes}: both must be at least 1")
        self.folder = Path(folder)
        self.max_samples = max_samples
        self.max_bytes = max_bytes
        self.prefix = prefix
        self._sources = tuple(SourceFile.of(Path(source)) for source in sources)
        self._overwrite = overwrite
        self._shards: list[ShardInfo] = []
        self._keys: set[str] = set()
        self._open: OpenShard | None = None
        self._earlier = self._prepare()

    @property
    def manifest(self) -> Manifest:
        """The shards finished so far."""
        return Manifest(tuple(self._shards), self._sources)

    def write(self, key: str, members: Mapping[str, Member], duration_s: float | None = None) -> None:
        """Append a sample.

        Args:
            key: name of the sample, unique in the folder; no dots or slashes, at which WebDataset would cut it.
            members: content by type (mp4, json, ...); a str is written as UTF-8, a dict as JSON.
            duration_s: playing time in seconds, for the totals of the manifest.

        Raises:
            InputError: when the key, a type or a content is not allowed, or the disk refuses.
        """
        check_key(key)
        if key in self._keys:
            raise InputError(f"key {key!r}: is used twice; give every sample its own key")
        encoded = {kind: encode(key, kind, content) for kind, content in members.items()}
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
        sync_shards(self.folder, self._shards)
        replace_file(self.folder / MANIFEST_NAME, self.manifest.to_json().encode())
        written = {name for shard in self._shards for name in (shard.name, shard.index_name)}
        for path in self.folder.glob(f"{self.prefix}-??????*.*"):
            if path.suffix in {".tar", ".index"} and path.name not in written:
                path.unlink()

    def _prepare(self) -> Manifest | None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            earlier = None if self._overwrite else read_manifest(self.folder)
            if earlier is None and not self._overwrite and any(self.folder.glob("*.tar")):
                raise InputError(self._holds_others())
            for path in (*self.folder.glob(".*.tar.partial"), *self.folder.glob(".*.index.partial")):
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

    def _shard_for(self, size: int) -> OpenShard:
        shard = self._open
        if shard is not None and (shard.samples >= self.max_samples or shard.bytes + size > self.max_bytes):
            self._close_shard()
            shard = None
        if shard is None:
            shard = self._open = OpenShard(self.folder, f"{self.prefix}-{len(self._shards):06d}.tar")
        return shard

    def _close_shard(self) -> None:
        if self._open is None:
            return
        shard, self._open = self._open, None
        info = shard.finish()
        number = len(self._shards)
        if self._earlier is None:
            shard.publish(info)
        else:
            shard.discard()
            if number >= len(self._earlier.shards) or not _same(self._earlier.shards[number], info):
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


class ShardFiles(Protocol):
    """Where the files of a set are: the only part of reading that differs between a disk and object storage."""

    def open(self, shard: ShardInfo) -> int:
        """Open a shard for reading by place.

        Raises:
            OSError: when it cannot be opened.
            SampleError: when it cannot be had.
        """

    def index(self, shard: ShardInfo) -> bytes:
        """Read a shard's index file; errors as for ``open``."""

    def scan(self, shard: ShardInfo) -> TarIndex:
        """Go through the headers of a shard that has no index; errors as for ``open``, and InputError."""

    def prefetch(self, shards: Iterable[ShardInfo]) -> None:
        """Begin to make shards ready that will be opened soon."""


class _Folder:
    """Shards on a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, shard: ShardInfo) -> int:
        return os.open(self.path / shard.name, os.O_RDONLY | os.O_CLOEXEC)

    def index(self, shard: ShardInfo) -> bytes:
        return (self.path / shard.index_name).read_bytes()

    def scan(self, shard: ShardInfo) -> TarIndex:
        return scan(self.path / shard.name)

    def prefetch(self, shards: Iterable[ShardInfo]) -> None:
        """Nothing to do: the system reads ahead."""


class ShardSet:
    """The samples of a folder of shards, read by place; build it with ``ShardSet.open``.

    Every sample that the manifest promises has a number, whether its bytes are still there or not, so that damage to
    one shard does not renumber the rest. The index of a shard is read when its first sample is asked for. Safe to use
    in forked workers: reads carry their offset and share no cursor.

    Args:
        files: where the shards are.
        shards: in the order that numbers their samples.
        manifest_hash: names the data.
        scanned: tables of the shards that have no index or are not as the manifest says, by their number.
    """

    _MAX_OPEN = 32
    _MAX_INDEX_BYTES = 1 << 27

    def __init__(
        self,
        files: ShardFiles,
        shards: Sequence[ShardInfo],
        manifest_hash: str,
        scanned: Mapping[int, SampleTable] | None = None,
    ) -> None:
        self.names = tuple(shard.name for shard in shards)
        self.samples_per_shard = tuple(shard.samples for shard in shards)
        self.manifest_hash = manifest_hash
        self._files = files
        self._shards = tuple(shards)
        self._first = np.concatenate([[0], np.cumsum(self.samples_per_shard, dtype=np.int64)])
        self._scanned = dict(scanned or {})
        self._tables: OrderedDict[int, SampleTable] = OrderedDict()
        self._table_bytes = 0
        self._open: OrderedDict[int, int] = OrderedDict()
        self._given_up: dict[int, str] = {}

    @classmethod
    def open(cls, folder: str | Path, *, cache: ShardCache | None = None) -> Self:
        """Compare the shards of a folder with its manifest, if it has one, and scan those that have no index.

        Args:
            folder: path, or address such as ``s3://bucket/set``, where a manifest is needed.
            cache: keeps the shards of an address; None takes the one of the user.

        Raises:
            InputError: when the folder holds no shards, a shard is missing, is not a tar file, has no readable
                sample or is not the one of the manifest.
        """
        if is_address(folder):
            remote = RemoteFiles(str(folder), cache or ShardCache())
            described = remote.manifest()
            return cls(remote, described.shards, described.hash)
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; correct the path or write shards there with {_WRITER}")
        manifest = read_manifest(folder)
        found = _sizes(folder)
        if not found and (manifest is None or not manifest.shards):
            raise InputError(f"{folder}: holds no shards (*.tar); write some with {_WRITER}")
        if manifest is None and (folder / PACKING_NAME).exists():
            raise InputError(f"{folder}: is not packed to the end; run the same command again, or join its parts")
        if manifest is None:
            return cls._open_foreign(folder, found)
        require_names(folder, found, [shard.name for shard in manifest.shards])
        scanned = {
            number: _scan_promised(folder, shard)
            for number, shard in enumerate(manifest.shards)
            if shard.index_sha256 is None or found[shard.name] != shard.bytes
        }
        return cls(_Folder(folder), manifest.shards, manifest.hash, scanned)

    @classmethod
    def _open_foreign(cls, folder: Path, sizes: Mapping[str, int]) -> Self:
        """Open shards of another tool, which nothing but their headers describes."""
        shards, tables = [], []
        for name in sorted(sizes):
            index = scan(folder / name)
            found = _count(folder / name, index)
            if not index.complete:
                message = "%s: is damaged and no manifest says how much is lost; %d samples found"
                _log.warning(message, folder / name, found)
            shards.append(ShardInfo(name=name, sha256="", bytes=sizes[name], samples=found, duration_s=0.0))
            tables.append(SampleTable.of(index, found))
        return cls(_Folder(folder), shards, _fingerprint(shards, tables), dict(enumerate(tables)))

    def __len__(self) -> int:
        return int(self._first[-1])

    def shard_of(self, index: int) -> int:
        """Number of the shard that holds a sample."""
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def key(self, index: int) -> str:
        """Name of a sample; ``<shard>#<number>`` where the damage took the name too."""
        shard, number = self._place(index)
        return self._table(shard).key(number) or f"{self.names[shard]}#{number}"

    def types(self, index: int) -> tuple[str, ...]:
        """Types of a sample's members, without reading them."""
        shard, number = self._place(index)
        return tuple(self._table(shard).spans(number))

    def problem(self, index: int) -> str | None:
        """Why a sample cannot be read; None when it can."""
        shard, number = self._place(index)
        return self._table(shard).reason(number)

    def read(self, index: int, types: Collection[str] | None = None) -> RawSample:
        """Read the members of a sample.

        Args:
            index: position in the set, from 0.
            types: read only members of these types; None reads all.

        Raises:
            SampleError: when the shard lost the sample; the reason is ``problem(index)``, ``shard_changed`` or
                ``shard_unreadable``.
            IndexError: when the set is shorter.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if (reason := self.problem(index)) is not None:
            raise SampleError(reason)
        shard, number = self._place(index)
        key, spans = self.key(index), self._table(shard).spans(number)
        if types is not None:
            spans = {kind: span for kind, span in spans.items() if kind in types}
        file = self._file(shard)
        try:
            members = {kind: os.pread(file, span.size, span.offset) for kind, span in spans.items()}
            # an index says where members should be; the header in front of each says what is there
            names = {} if shard in self._scanned else {kind: f"{key}.{kind}" for kind in spans}
            same = all(is_header(_block_before(file, spans[kind]), name, spans[kind]) for kind, name in names.items())
        except OSError as error:
            raise SampleError("shard_unreadable") from error
        if not same or any(len(members[kind]) != span.size for kind, span in spans.items()):
            raise SampleError("shard_changed")
        return RawSample(key, members, self.names[shard], index)

    def prefetch(self, samples: NDArray[np.int64]) -> None:
        """Begin to fetch the shards of samples that will be read soon, in the background; local shards are there.

        Args:
            samples: positions in the set.
        """
        numbers = np.unique(np.searchsorted(self._first, samples, side="right") - 1).tolist()
        self._files.prefetch(self._shards[number] for number in numbers if number not in self._open)

    def close(self) -> None:
        """Close the shards' files; they open again when needed."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_tables": OrderedDict(), "_table_bytes": 0}

    def _place(self, index: int) -> tuple[int, int]:
        shard = self.shard_of(index)
        return shard, index - int(self._first[shard])

    def _table(self, shard: int) -> SampleTable:
        if shard in self._scanned:
            return self._scanned[shard]
        if shard not in self._tables:
            self._tables[shard] = self._load(self._shards[shard])
            self._table_bytes += self._tables[shard].nbytes
            while self._table_bytes > self._MAX_INDEX_BYTES and len(self._tables) > 1:
                self._table_bytes -= self._tables.popitem(last=False)[1].nbytes
        self._tables.move_to_end(shard)
        return self._tables[shard]

    def _load(self, shard: ShardInfo) -> SampleTable:
        """The table of a shard from its index, or from its headers when the index is not the one of the manifest."""
        try:
            if shard.index_sha256 is not None:
                content = self._files.index(shard)
                if hashlib.sha256(content).hexdigest() == shard.index_sha256:
                    return SampleTable.from_bytes(content, shard_bytes=shard.bytes, num_samples=shard.samples)
        except (OSError, ValueError, SampleError) as error:
            _log.warning("%s: its index is not used (%s)", shard.name, error)
        else:
            _log.warning("%s: its index is not used (it is not the one of %s)", shard.name, MANIFEST_NAME)
        try:
            table = SampleTable.of(self._files.scan(shard), shard.samples)
            return table if len(table) == shard.samples else SampleTable.lost(shard.samples, "shard_changed")
        except (InputError, OSError):
            return SampleTable.lost(shard.samples, "shard_unreadable")
        except SampleError as error:
            return SampleTable.lost(shard.samples, error.reason)

    def _file(self, shard: int) -> int:
        if shard in self._given_up:
            raise SampleError(self._given_up[shard])
        if shard not in self._open:
            try:
                file = self._files.open(self._shards[shard])
            except OSError as error:
                raise SampleError("shard_unreadable") from error
            except SampleError as error:  # after many attempts, which the next sample need not wait for again
                self._given_up[shard] = error.reason
                raise
            if shard not in self._scanned and os.fstat(file).st_size != self._shards[shard].bytes:
                os.close(file)
                raise SampleError("shard_changed")
            self._open[shard] = file
        self._open.move_to_end(shard)
        if len(self._open) > self._MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return self._open[shard]


def _sizes(folder: Path) -> dict[str, int]:
    """The shards that lie in a folder, and their sizes."""
    with os.scandir(folder) as entries:
        return {e.name: e.stat().st_size for e in entries if e.name.endswith(".tar") and not e.name.startswith(".")}


def _scan_promised(folder: Path, promised: ShardInfo) -> SampleTable:
    """The table of a shard that is not as its manifest says or has no index."""
    path = folder / promised.name
    index = scan(path)
    found = _count(path, index)
    intact = index.complete and not index.unusable and found == promised.samples
    if found > promised.samples or (intact and path.stat().st_size != promised.bytes):
        raise InputError(f"{path}: is not the one that {MANIFEST_NAME} describes; restore it or write the shards again")
    return SampleTable.of(index, promised.samples)


def _count(path: Path, index: TarIndex) -> int:
    """How many samples a shard has, those that cannot be used included."""
    found = len(index.members)
    if found == len(index.unusable):
        raise InputError(f"{path}: has no readable sample; restore it or remove it and write the shards again")
    return found


def _block_before(file: int, span: Span) -> bytes:
    return os.pread(file, BLOCK, span.offset - BLOCK) if span.offset >= BLOCK else b""


def _fingerprint(shards: Sequence[ShardInfo], tables: Sequence[SampleTable]) -> str:
    """What identifies shards without a manifest: names, counts, and place and size of every member."""
    lines = "\n".join([*(f"{shard.name} {shard.samples}" for shard in shards), fingerprint(tables)])
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _same(earlier: ShardInfo, shard: ShardInfo) -> bool:
    """Whether two shards have the same content; the index follows from it, and version 1 had none."""
    return replace(earlier, index_sha256=None) == replace(shard, index_sha256=None)

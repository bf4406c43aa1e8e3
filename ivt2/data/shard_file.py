"""One shard: how a sample is written into a tar file, and what may be a sample."""

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ivt2.data.files import sync, write_all
from ivt2.data.manifest import ShardInfo
from ivt2.data.shard_index import SampleTable
from ivt2.data.tar_index import BLOCK, MEMBER_TYPES, Span
from ivt2.errors import InputError

Member = bytes | str | dict[str, Any]

_BUFFER_BYTES = 1 << 20
_COPIED_BYTES = 1 << 16
_SYNC_THREADS = 16


class OpenShard:
    """A shard being written under a temporary name; its hash is taken as it is written."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / name
        self.temporary = folder / f".{name}.partial"
        self.samples = 0
        self.bytes = 0
        self.duration_s = 0.0
        self._table = SampleTable()
        self._index = b""
        self._hash = hashlib.sha256()
        self._size = 0
        self._file = self.temporary.open("wb", buffering=_BUFFER_BYTES)

    def write(self, key: str, members: Mapping[str, bytes], duration_s: float) -> None:
        """Append a sample and note where its members lie."""
        spans: dict[str, Span] = {}
        parts: list[bytes] = []
        offset = self._size
        for kind in sorted(members):
            content = members[kind]
            size = len(content)
            header = tar_header(f"{key}.{kind}", size)
            offset += len(header)
            spans[kind] = Span(offset, size)
            parts += (header, content, _PADDING[: -size % BLOCK])
            offset += size + -size % BLOCK
            self.bytes += size
        self._append(parts, offset - self._size)
        self._table.add(key, spans)
        self.samples += 1
        self.duration_s += duration_s

    def finish(self) -> ShardInfo:
        """End the archive and say what it holds; ``sync_shards`` waits until a disk holds it."""
        end = 2 * BLOCK
        end += -(self._size + end) % tarfile.RECORDSIZE
        self._append([bytes(end)], end)
        self._file.flush()
        if sys.platform == "linux":  # the disk begins now, while the next shard is made
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._file.close()
        self._index = self._table.to_bytes(shard_bytes=self._size)
        return ShardInfo(
            name=self.path.name,
            sha256=self._hash.hexdigest(),
            bytes=self._size,
            samples=self.samples,
            duration_s=round(self.duration_s, 3),
            index_sha256=hashlib.sha256(self._index).hexdigest(),
        )

    def publish(self, info: ShardInfo) -> None:
        """Give a finished shard its name, and its index too."""
        index = self.path.with_name(info.index_name)
        temporary = index.with_name(f".{index.name}.partial")
        temporary.write_bytes(self._index)
        temporary.replace(index)
        self.temporary.replace(self.path)

    def discard(self) -> None:
        """Remove it, finished or not."""
        with suppress(OSError):
            self._file.close()
        self.temporary.unlink(missing_ok=True)

    def _append(self, parts: Sequence[bytes], size: int) -> None:
        if size > _COPIED_BYTES:
            self._file.flush()
            write_all(self._file.fileno(), parts)
            for part in parts:
                self._hash.update(part)
        else:  # a small sample costs less copied than in several calls
            whole = b"".join(parts)
            self._file.write(whole)
            self._hash.update(whole)
        self._size += size


def tar_header(name: str, size: int) -> bytes:
    """Header of a plain file in a tar archive: fixed owner, mode and time, so that equal samples give equal bytes.

    Args:
        name: of the file, of any length and script; one that does not fit gets a record of its own in front.
        size: of the file in bytes.

    Source: POSIX.1-2001, ``pax`` interchange format; as ``tarfile`` writes it.
    """
    if len(name) > tarfile.LENGTH_NAME or not name.isascii() or size >= 8**11:
        return _tar_info(name, size).tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    # the same bytes at a fifth of the time: only name, size and checksum differ from one header to the next
    digits, letters = b"%011o" % size, name.encode()
    checksum = _EMPTY_CHECKSUM + sum(letters) + sum(digits)
    padded = letters.ljust(tarfile.LENGTH_NAME, b"\0")
    return b"".join((padded, _EMPTY[100:124], digits, _EMPTY[135:148], b"%06o\0" % checksum, _EMPTY[155:]))


def _tar_info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info


_EMPTY = _tar_info("", 0).tobuf(tarfile.PAX_FORMAT)
_PADDING = bytes(BLOCK)
_EMPTY_CHECKSUM = int(_EMPTY[148:154], 8) - sum(b"%011o" % 0)


def sync_shards(folder: Path, shards: Iterable[ShardInfo]) -> None:
    """Wait until the disk holds shards and their indexes, so that a power cut cannot take them any more.

    Raises:
        OSError: when one of them is not there.
    """
    paths = [folder / name for shard in shards for name in (shard.name, shard.index_name)]
    # all at once: one flush of the disk's own cache then serves every file that waits for it
    with ThreadPoolExecutor(_SYNC_THREADS) as threads:
        for _ in threads.map(sync, paths):
            pass
    sync(folder)


def check_key(key: str) -> None:
    """Refuse a key that cannot be printed or that WebDataset would cut."""
    if not key or not key.isprintable() or any(letter in key for letter in "./\\"):
        raise InputError(f"key {key!r}: must be printable text without dots and slashes; replace them, with _ say")


def encode(key: str, kind: str, content: Member) -> bytes:
    """Return a member's bytes; what cannot be read back is refused."""
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

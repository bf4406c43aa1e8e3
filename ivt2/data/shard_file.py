"""One shard: how a sample is written into a tar file, and what may be a sample."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ivt2.data.manifest import ShardInfo, digest
from ivt2.data.shard_index import SampleTable
from ivt2.data.tar_index import BLOCK, MEMBER_TYPES, Span
from ivt2.errors import InputError

Member = bytes | str | dict[str, Any]


class OpenShard:
    """A shard being written under a temporary name."""

    def __init__(self, folder: Path, name: str) -> None:
        from webdataset import TarWriter

        self.path = folder / name
        self.temporary = folder / f".{name}.partial"
        self.samples = 0
        self.bytes = 0
        self.duration_s = 0.0
        self._table = SampleTable()
        self._file = self.temporary.open("w+b")
        # fixed owner, mode and time: equal samples give equal bytes; PAX takes names of any length
        self._index = b""
        self._tar = TarWriter(self._file, encoder=False, mtime=0, user="", group="", format="PAX_FORMAT")

    def write(self, key: str, members: Mapping[str, bytes], duration_s: float) -> None:
        """Append a sample and note where its members lie."""
        spans = {}
        for kind in sorted(members):
            self._tar.write({"__key__": key, kind: members[kind]})
            padded = -(-len(members[kind]) // BLOCK) * BLOCK
            spans[kind] = Span(self._tar.tarstream.offset - padded, len(members[kind]))
        self._table.add(key, spans)
        self.samples += 1
        self.bytes += sum(map(len, members.values()))
        self.duration_s += duration_s

    def finish(self) -> ShardInfo:
        """End the archive and say what it holds."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.seek(0)
        sha256 = digest(self._file)
        self._file.close()
        self._index = self._table.to_bytes(shard_bytes=size)
        return ShardInfo(
            name=self.path.name,
            sha256=sha256,
            bytes=size,
            samples=self.samples,
            duration_s=round(self.duration_s, 3),
            index_sha256=hashlib.sha256(self._index).hexdigest(),
        )

    def publish(self, info: ShardInfo) -> None:
        """Give a finished shard its name, and its index too."""
        replace_file(self.path.with_name(info.index_name), self._index)
        self.temporary.replace(self.path)

    def discard(self) -> None:
        """Remove it, finished or not."""
        with suppress(OSError):
            self._tar.close()
            self._file.close()
        self.temporary.unlink(missing_ok=True)


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


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a power cut."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)

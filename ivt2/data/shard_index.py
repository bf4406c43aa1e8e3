"""Where the samples of a shard lie, as a file beside the shard: no tar header has to be read to open a set.

The file is a header (mark, bytes of the shard, samples, members, bytes of keys), then, little-endian: offset and size
of each member, end of each key, end of each sample's members, type of each member, reason of each sample, the keys.
"""

import hashlib
import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from typing_extensions import Self

from ivt2.data.tar_index import Span, TarIndex

_MARK = b"ivtidx1\n"
_HEADER = struct.Struct("<8s4Q")
_STORED_TYPES = (
    *("mp4", "webm", "avi", "mkv", "mov", "gif", "wav", "flac", "mp3"),
    *("jpg", "jpeg", "png", "txt", "json", "npy"),
)
"""Number of each type in index files; new ones are added at the end."""
_REASONS = (
    *("", "member_refused", "duplicate_key", "shard_truncated", "shard_damaged"),
    *("shard_unreadable", "shard_changed", "shard_unreachable"),
)
"""Number of each reason in index files; new ones are added at the end."""

_Numbers: TypeAlias = "array[int]"


class SampleTable:
    """Keys, spans and failures of the samples of one shard in flat arrays, about a hundred bytes for a sample.

    Millions of small objects would cost ten times as much, and again in every forked worker as their reference counts
    are touched.
    """

    def __init__(self) -> None:
        self._keys = bytearray()
        self._key_end = array("q", [0])
        self._types = bytearray()
        self._spans = array("q")
        self._types_end = array("q", [0])
        self._reasons = bytearray()

    @classmethod
    def of(cls, index: TarIndex, num_samples: int) -> Self:
        """Take what a pass over the headers of a shard found; samples beyond those count as lost.

        Args:
            index: what was found.
            num_samples: how many the shard held when it was written.
        """
        missing = num_samples - len(index.members)
        table = cls()
        for key, spans in index.members.items():
            table.add(key, spans, index.unusable.get(key))
        for _ in range(missing):
            table.add("", {}, "shard_damaged" if index.complete else "shard_truncated")
        return table

    @classmethod
    def lost(cls, num_samples: int, reason: str) -> Self:
        """Take a shard of which nothing can be read."""
        table = cls()
        for _ in range(num_samples):
            table.add("", {}, reason)
        return table

    @classmethod
    def from_bytes(cls, content: bytes, *, shard_bytes: int, num_samples: int) -> Self:
        """Read an index file.

        Args:
            content: of the file.
            shard_bytes: size of the shard that it belongs to.
            num_samples: samples of that shard.

        Raises:
            ValueError: when the file is damaged or of another shard.
        """
        if len(content) < _HEADER.size:
            raise ValueError("is too short")
        mark, described_bytes, samples, members, key_bytes = _HEADER.unpack_from(content)
        sizes = [16 * members, 8 * samples, 8 * samples, members, samples, key_bytes]
        if mark != _MARK or len(content) != _HEADER.size + sum(sizes):
            raise ValueError("is not an index")
        if (described_bytes, samples) != (shard_bytes, num_samples):
            raise ValueError("is of another shard")
        ends = np.cumsum([_HEADER.size, *sizes]).tolist()
        spans, key_end, types_end, types, reasons, keys = (content[begin:end] for begin, end in pairwise(ends))
        table = cls()
        table._spans = _numbers(spans)
        table._key_end.extend(_numbers(key_end))
        table._types_end.extend(_numbers(types_end))
        table._types, table._reasons, table._keys = bytearray(types), bytearray(reasons), bytearray(keys)
        table._check(shard_bytes)
        return table

    def to_bytes(self, *, shard_bytes: int) -> bytes:
        """Return the content of the index file.

        Args:
            shard_bytes: size of the shard.
        """
        header = _HEADER.pack(_MARK, shard_bytes, len(self), len(self._types), len(self._keys))
        numbers = b"".join(
            _little_endian(part).tobytes() for part in (self._spans, self._key_end[1:], self._types_end[1:])
        )
        return header + numbers + bytes(self._types + self._reasons + self._keys)

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def nbytes(self) -> int:
        """Memory of the table."""
        numbers = len(self._spans) + len(self._key_end) + len(self._types_end)
        return 8 * numbers + len(self._types) + len(self._reasons) + len(self._keys)

    def add(self, key: str, spans: dict[str, Span], reason: str | None = None) -> None:
        """Append a sample.

        Args:
            key: its name; empty when it was lost with its header.
            spans: where its members lie, by type.
            reason: why it cannot be used; None when it can.
        """
        self._keys += key.encode()
        self._key_end.append(len(self._keys))
        for kind, span in spans.items():
            self._types.append(_STORED_TYPES.index(kind))
            self._spans.extend(span)
        self._types_end.append(len(self._types))
        self._reasons.append(_REASONS.index(reason or ""))

    def key(self, sample: int) -> str:
        """Name of a sample, empty when it was lost with its header."""
        return self._keys[self._key_end[sample] : self._key_end[sample + 1]].decode()

    def spans(self, sample: int) -> dict[str, Span]:
        """Where the members of a sample lie in its shard."""
        members = range(self._types_end[sample], self._types_end[sample + 1])
        return {_STORED_TYPES[self._types[i]]: Span(self._spans[2 * i], self._spans[2 * i + 1]) for i in members}

    def reason(self, sample: int) -> str | None:
        """Why a sample cannot be used; None when it can."""
        return _REASONS[self._reasons[sample]] or None

    def _check(self, shard_bytes: int) -> None:
        """Whether every number points to where it may; a manifest and its index may come from anywhere."""
        spans = np.frombuffer(self._spans, np.int64).reshape(-1, 2)
        inside = (spans >= 0).all() and (spans <= shard_bytes).all() and (spans.sum(axis=1) <= shard_bytes).all()
        if not inside or max(self._types, default=0) >= len(_STORED_TYPES):
            raise ValueError("points outside the shard")
        if max(self._reasons, default=0) >= len(_REASONS):
            raise ValueError("has an unknown reason")
        for ends, size in ((self._key_end, len(self._keys)), (self._types_end, len(self._types))):
            numbers = np.frombuffer(ends, np.int64)
            if (np.diff(numbers) < 0).any() or ends[0] != 0 or ends[-1] != size:
                raise ValueError("is inconsistent")
        self._keys.decode()


def fingerprint(tables: Sequence[SampleTable]) -> str:
    """Hash of all keys and spans of consecutive shards."""
    state = hashlib.sha256()
    for table in tables:
        state.update(table._keys)
    for table in tables:
        state.update(table._types)
    for table in tables:
        state.update(table._spans)
    for ends in ([table._key_end for table in tables], [table._types_end for table in tables]):
        state.update(array("q", [0]))
        first = 0
        for part in ends:
            state.update((np.frombuffer(part, np.int64)[1:] + first).tobytes())
            first += part[-1]
    return state.hexdigest()


def _numbers(content: bytes) -> _Numbers:
    numbers = array("q")
    numbers.frombytes(content)
    return _little_endian(numbers)


def _little_endian(numbers: _Numbers) -> _Numbers:
    """Swap to or from the order of the file, which on almost every machine is its own."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers

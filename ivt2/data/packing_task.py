"""One task of a packing: its records' files are read, prepared and written as shards of their own."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation
from ivt2.data.containers import DecodeError
from ivt2.data.ledger import SampleError
from ivt2.data.manifest import ShardInfo
from ivt2.data.media_files import file_state, read_media
from ivt2.data.packing_journal import Journal, LostRecord, TaskEntry
from ivt2.data.packing_plan import records_of
from ivt2.data.shard_file import OpenShard, encode
from ivt2.errors import InputError

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class Prepares(Protocol):
    """What becomes of a media file before it is packed, such as ``ivt2.data.preparation.Preparation``."""

    def __call__(self, kind: str, data: bytes, record: Annotation) -> tuple[dict[str, bytes], Annotation]:
        """Return the members of the sample without json, by type, and the record that describes them.

        Raises:
            SampleError: the file cannot be used.
        """

    def facts(self) -> dict[str, Any]:
        """Return what identifies it."""


class TaskPacker:
    """Packs tasks; all of it that is the same for every task.

    Args:
        folder: of the shards.
        media_root: folder that the records' files are relative to.
        preparation: of each file.
        max_samples: samples of a shard, which is also how many records a task has.
        max_bytes: bytes of a shard's members; one sample may be larger.
    """

    def __init__(
        self, folder: Path, media_root: str, *, preparation: Prepares, max_samples: int, max_bytes: int
    ) -> None:
        self.folder = folder
        self.media_root = media_root
        self.preparation = preparation
        self.max_samples = max_samples
        self.max_bytes = max_bytes
        self._journal = Journal(folder)

    def pack(
        self, number: int, digest: str, text: bytes, *, lost: Mapping[int, str], at: Callable[[int], None]
    ) -> None:
        """Pack a task and enter what it made in the journal.

        Args:
            number: of the task.
            digest: hash of its records.
            text: its records.
            lost: places of records that are not to be tried, each with the reason.
            at: called with the place of each record before it is packed, and with their number after the last one.

        Raises:
            InputError: when the shards cannot be written.
        """
        losses: list[LostRecord] = []
        shards = _TaskShards(self.folder, number, max_samples=self.max_samples, max_bytes=self.max_bytes)
        place = -1
        try:
            for place, (key, record) in enumerate(records_of(text)):
                at(place)
                try:
                    members, duration_s = self.sample(record, lost.get(place))
                except (SampleError, DecodeError) as error:
                    losses.append(self._lost(record, error.reason))
                else:
                    shards.write(key, members, duration_s)
            at(place + 1)
            infos = shards.finish()
            entry = TaskEntry(records=digest, num_records=place + 1, lost=tuple(losses), shards=tuple(infos))
            self._journal.write(number, entry)
        except OSError as error:
            raise InputError(f"{self.folder}: {error.strerror}; free some space or choose another folder") from error

    def sample(self, record: Annotation | Skipped, reason: str | None = None) -> tuple[dict[str, bytes], float]:
        """Read and prepare a record's file.

        Args:
            record: names the file.
            reason: why it is not to be tried; None tries it.

        Returns:
            The members of its sample, and its playing time in seconds, 0 where it is not known.

        Raises:
            SampleError: it cannot be used.
            DecodeError: its file cannot be used.
        """
        if isinstance(record, Skipped):
            raise SampleError(record.reason)
        if reason is not None:
            raise SampleError(reason)
        try:
            kind, data = read_media(record, self.media_root)
            media, record = self.preparation(kind, data, record)
        except MemoryError as error:  # what a file asks for, and not what this program needs
            raise SampleError("decoder_crashed") from error
        try:
            text = _ENCODER.encode(record.to_member()).encode()
        except UnicodeEncodeError as error:  # a lone surrogate somewhere in a fact
            raise SampleError("text_invalid_utf8") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise SampleError("json_invalid") from error
        return {**media, "json": text}, _duration_s(record)

    def probe(self, text: bytes, place: int) -> None:
        """Read and prepare one record of a task, for nothing but to see whether that ends the process."""
        with suppress(SampleError, DecodeError):
            self.sample(next(islice(records_of(text), place, None))[1])

    def _lost(self, record: Annotation | Skipped, reason: str) -> LostRecord:
        if isinstance(record, Skipped):
            return LostRecord(key=record.key, reason=reason, from_media=False)
        state = file_state(f"{self.media_root}/{record.file}")
        return LostRecord(key=record.file, reason=reason, from_media=True, state=state)


class _TaskShards:
    """The shards of one task: ``shard-000012.tar``, then ``shard-000012_0001.tar``, which sorts after it, and so on."""

    def __init__(self, folder: Path, number: int, *, max_samples: int, max_bytes: int) -> None:
        self._folder = folder
        self._stem = f"shard-{number:06d}"
        self._width = len(str(max_samples))
        self._max_bytes = max_bytes
        self._open: OpenShard | None = None
        self._finished: list[ShardInfo] = []

    def write(self, key: str, members: Mapping[str, bytes], duration_s: float) -> None:
        size = sum(map(len, members.values()))
        if self._open is not None and self._open.bytes + size > self._max_bytes:
            self._close()
        if self._open is None:
            later = f"_{len(self._finished):0{self._width}d}" if self._finished else ""
            self._open = OpenShard(self._folder, f"{self._stem}{later}.tar")
        self._open.write(key, {kind: encode(key, kind, content) for kind, content in members.items()}, duration_s)

    def finish(self) -> list[ShardInfo]:
        self._close()
        return self._finished

    def _close(self) -> None:
        if self._open is not None:
            info = self._open.finish()
            self._open.publish(info)
            self._finished.append(info)
            self._open = None


def _duration_s(record: Annotation) -> float:
    duration_s = record.facts.get("duration_s")
    if not isinstance(duration_s, int | float) or isinstance(duration_s, bool) or not 0 <= duration_s < math.inf:
        return 0.0
    return float(duration_s)

"""Which records a set of shards is packed from, and in which portions.

Records are dealt into tasks of as many consecutive records as a shard may have samples. A task makes shards of its own,
named by its number, so what a shard holds does not depend on how many processes or machines took part.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from posixpath import normpath, splitext
from typing import Any, NamedTuple

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation, FrameFiles
from ivt2.data.order import permutation
from ivt2.errors import InputError

_FIELDS = tuple(field.name for field in fields(Annotation))
_LISTS = ("captions", "options", "answers", "turns")
_values = attrgetter(*_FIELDS)
_IN_KEYS = str.maketrans("./\\", "___")  # for what WebDataset would cut a key at


@dataclass(frozen=True, kw_only=True)
class HashSplit:
    """One split of records that come without any; a record's split follows from the name of its file alone.

    So all records of a file are in one split, and records that are added move no other.

    Args:
        shares: part of the files that goes into each split, by name; together 1. None keeps all records.
        take: the split that is packed; None keeps all records.
        seed: another one gives other splits.

    Raises:
        InputError: when the shares are not parts of 1 or ``take`` is none of them.
    """

    shares: Mapping[str, float] | None = None
    take: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shares is None and self.take is None:
            return
        if self.shares is None or self.take not in self.shares:
            known = "none" if self.shares is None else ", ".join(self.shares)
            raise InputError(f"split.take={self.take}: is not one of split.shares ({known}); name one of them")
        values = self.shares.values()
        if any(not 0 < share <= 1 for share in values) or not math.isclose(sum(values), 1, abs_tol=1e-9):
            raise InputError(f"split.shares={dict(self.shares)}: give each split a share above 0, together 1")

    @property
    def share(self) -> float:
        """Part of all files that is kept."""
        return 1.0 if self.shares is None or self.take is None else self.shares[self.take]

    def __contains__(self, name: str) -> bool:
        """Whether the records of a file belong to the split that is packed."""
        if self.shares is None:
            return True
        number = hashlib.sha256(f"{self.seed}:{normpath(name)}".encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(number[:8], "big") / 2**64
        end = 0.0
        for split in sorted(self.shares):  # the order in which they were given says nothing
            end += self.shares[split]
            if place < end:
                return split == self.take
        return max(self.shares) == self.take  # the shares' sum may be a rounding below 1

    def facts(self) -> dict[str, Any] | None:
        """Return what identifies the split; None for all records."""
        if self.shares is None:
            return None
        return {"shares": dict(sorted(self.shares.items())), "take": self.take, "seed": self.seed}


class Task(NamedTuple):
    """Records that one worker packs into shards of their own."""

    number: int
    num_records: int
    text: bytes
    """The records, as json."""
    digest: str
    """Hash of the text."""


def deal(
    records: Iterable[Annotation | Skipped], *, split: HashSplit, shuffle_seed: int | None, max_records: int
) -> Iterator[Task]:
    """Give each record its key and deal those of a split into tasks.

    Args:
        records: as a source gives them.
        split: which are kept.
        shuffle_seed: of the permutation in which they are dealt, which needs all of them in memory; None keeps their
            order.
        max_records: of a task.
    """
    keys: dict[str, int] = {}
    keyed = (_text(record, keys) for record in records)
    kept: Iterable[str] = (text for name, text in keyed if name in split)
    if shuffle_seed is not None:
        texts = list(kept)
        kept = (texts[place] for place in permutation(len(texts), shuffle_seed).tolist())
    number, portion = 0, []
    for text in kept:
        portion.append(text)
        if len(portion) == max_records:
            yield _task(number, portion)
            number, portion = number + 1, []
    if portion:
        yield _task(number, portion)


def records_of(text: bytes) -> Iterator[tuple[str, Annotation | Skipped]]:
    """Return the records of a task, each with its key."""
    for key, *values in json.loads(text):
        if key is None:
            yield "", Skipped(*values)
            continue
        record = dict(zip(_FIELDS, values, strict=True))
        record.update({name: tuple(record[name]) for name in _LISTS})
        if record["frames"] is not None:
            record["frames"] = FrameFiles(*record["frames"])
        yield key, Annotation(**record)


def _task(number: int, records: Sequence[str]) -> Task:
    text = f"[{','.join(records)}]".encode()
    return Task(number, len(records), text, hashlib.sha256(text).hexdigest())


def _text(record: Annotation | Skipped, keys: dict[str, int]) -> tuple[str, str]:
    """Name of a record, and json that says it whole."""
    if isinstance(record, Skipped):
        return record.key, _encoded([None, *record])
    try:
        return record.file, _encoded([_free_key(record.file, keys), *_values(record)])
    except (TypeError, ValueError, RecursionError):
        return record.file, _encoded([None, *Skipped("", record.file, "json_invalid")])


_encoded = json.JSONEncoder(separators=(",", ":"), default=dict).encode


def _free_key(file: str, keys: dict[str, int]) -> str:
    """A key that still tells the file: its path without the type, dots and slashes replaced, numbered when taken.

    Args:
        file: path of the media file.
        keys: the keys taken so far, each with the number that was last added to it.
    """
    stem = splitext(normpath(file))[0]
    stem = stem.translate(_IN_KEYS)
    if not stem.isprintable():
        stem = "".join([letter if letter.isprintable() else "_" for letter in stem])
    key, number = stem, keys.get(stem, 1)
    while key in keys:
        number += 1
        key = f"{stem}_{number}"
    keys[stem] = number
    keys.setdefault(key, 1)
    return key

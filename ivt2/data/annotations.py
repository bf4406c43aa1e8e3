"""Annotations: what a source says about its clips, and what a sample's members say in a shard.

A record names a media file and says what it shows; in a shard the same facts are the sample's ``json`` member:
``{"caption": str, "captions": [str, ...], "label": str, "class_index": int, "start_s": float, "end_s": float,
"options": [str, ...], "answers": [int, ...], "turns": [{"i": str, "q": str, "a": str}, ...], ...}``, each where there
is one. A shard of another tool may have the caption as a ``txt`` member instead.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, Protocol

from ivt2.batch import Skipped
from ivt2.data.ledger import SampleError
from ivt2.errors import InputError

MAX_CAPTION_LENGTH = 20_000
"""Characters; a paragraph of dense captions has some thousand, a page pasted by mistake has more."""
MAX_LINE_BYTES = 16 << 20
"""A longer line of an annotation file is one record that cannot be used; it is passed over without being kept."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIELD = re.compile(r"\{(\w*)(?::0(\d+))?\}")


class FrameFiles(NamedTuple):
    """Numbered JPEG files that together are a clip.

    Args:
        template: name of a file, its number counted from 1 as ``{}`` or, with leading zeros, ``{:05}``.
        num_frames: how many there are.
        fps: frames of a second.
    """

    template: str
    num_frames: int
    fps: float


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One record of a source.

    Args:
        file: path of the media file, relative to the media folder; of its folder where the clip is ``frames``.
        captions: the first one is *the* caption where only one is used; empty where the record has another content.
        label: name of the action, if any.
        class_index: number of the action among the classes of the benchmark, from 0.
        start_s: beginning of what the record describes, in seconds.
        end_s: its end, in seconds.
        options: choices of a question or of a class list.
        answers: places of the right ones among ``options``, from 0.
        turns: instruction ``i``, question ``q`` and answer ``a`` of each turn of a conversation.
        frames: the clip is these files of the folder ``file``.
        facts: whatever else the record says; kept in the json member.
    """

    file: str
    captions: tuple[str, ...] = ()
    label: str | None = None
    class_index: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    options: tuple[str, ...] = ()
    answers: tuple[int, ...] = ()
    turns: tuple[Mapping[str, str], ...] = ()
    frames: FrameFiles | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_member(self) -> dict[str, Any]:
        """Return the json member of the sample in a shard."""
        member: dict[str, Any] = {"caption": self.captions[0]} if self.captions else {}
        for name in ("captions", "label", "class_index", "start_s", "end_s", "options", "turns"):
            value = getattr(self, name)
            if value is not None and value != ():
                member[name] = list(value) if isinstance(value, tuple) else value
        if self.options:
            member["answers"] = list(self.answers)
        return {**self.facts, **member}


MEMBER_NAMES = frozenset({
    "caption",
    "captions",
    "label",
    "class_index",
    "start_s",
    "end_s",
    "options",
    "answers",
    "turns",
})
"""Names of the json member that have a meaning of their own."""


class Source(Protocol):
    """What shards are packed from."""

    name: str
    """Records that cannot be used are entered under it."""

    def __iter__(self) -> Iterator[Annotation | Skipped]:
        """Return, for each record in order, what it says or why it cannot be used."""

    def count(self) -> int:
        """Return how many records there are, good ones and bad ones."""


class RecordType(Protocol):
    """From the fields of a record, whatever the file's format, to what it says."""

    def __call__(self, fields: Mapping[str, Any]) -> Annotation:
        """Read one record.

        Raises:
            SampleError: the record cannot be used.
        """


def annotated(
    records: Iterator[tuple[str, Mapping[str, Any] | SampleError]], record: RecordType, source: str
) -> Iterator[Annotation | Skipped]:
    """Give the records of a file their meaning, and those that have none their reason.

    Args:
        records: key and fields of each record, or why it has none.
        record: reads the fields.
        source: name that skipped records are entered under.
    """
    for key, fields in records:
        try:
            if isinstance(fields, SampleError):
                raise fields
            yield record(fields)
        except SampleError as error:
            yield Skipped(source, key, error.reason)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Read the lines of a file that are not blank, one at a time.

    Returns:
        Number, from 1, and content of each; None for a line above ``MAX_LINE_BYTES``.

    Raises:
        InputError: when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from ((n, line) for n, line in enumerate(_lines(file), 1) if line is None or line.strip())
    except OSError as error:
        remedy = "give the annotation file of the source"
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines without a byte order mark; None for one that is too long."""
    if file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
        file.seek(0)
    while line := file.readline(MAX_LINE_BYTES):
        whole: bytes | None = line
        while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            whole, line = None, file.readline(MAX_LINE_BYTES)
        yield whole


def fields_of(template: str) -> list[str]:
    """Return the names of the fields of a template."""
    return [name for name, _ in _FIELD.findall(template)]


def filled(template: str, fields: Mapping[str, Any]) -> str | None:
    """Fill in a template: ``{name}`` is a field, ``{name:06}`` the same with leading zeros; nothing else is special.

    Returns:
        None when a field is absent, empty or neither text nor a whole number.
    """
    values = {name: fields.get(name) for name in fields_of(template)}
    for value in values.values():
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            return None
    return _FIELD.sub(lambda found: str(values[found[1]]).zfill(int(found[2] or 0)), template)


def seconds(value: object) -> float | None:
    """Return a time in seconds, given as a number, as text or as ``h:mm:ss.s``; None for nothing and for -1.

    Raises:
        SampleError: reason ``segment_invalid``.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SampleError("segment_invalid")
    try:
        parts = [float(part) for part in str(value).split(":")]
    except ValueError as error:
        raise SampleError("segment_invalid") from error
    if parts == [-1.0]:
        return None
    if len(parts) > 3 or any(not math.isfinite(part) or part < 0 for part in parts):
        raise SampleError("segment_invalid")
    return math.fsum(part * 60.0**power for power, part in enumerate(reversed(parts)))


def captions_of(members: Mapping[str, bytes]) -> list[str]:
    """Return the captions of a sample, the main one first, each once.

    Args:
        members: of the sample; ``json`` counts before ``txt``.

    Raises:
        SampleError: reasons ``text_missing``, ``text_empty``, ``text_not_a_string``, ``text_too_long``,
            ``text_invalid_utf8``, ``json_invalid``. One bad caption among several makes the sample unusable.
    """
    if "json" in members:
        facts = facts_of(members)
        if "caption" in facts or "captions" in facts:
            return list(stated_captions(facts))
    if "txt" in members:
        return [checked_text(decoded(members["txt"]))]
    raise SampleError("text_missing")


def facts_of(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the ``json`` member of a sample, empty when there is none.

    Raises:
        SampleError: reasons ``text_invalid_utf8`` and ``json_invalid``.
    """
    return parsed(members["json"]) if "json" in members else {}


def segment_of(facts: Mapping[str, Any]) -> tuple[float, float]:
    """Return beginning and end, in seconds, of what a record describes; the whole clip when it does not say.

    Raises:
        SampleError: reason ``segment_invalid``.
    """
    start, end = facts.get("start_s"), facts.get("end_s")
    start = 0.0 if start is None else start
    end = float("inf") if end is None else end
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (start, end))
    if not numbers or not 0 <= start < end:
        raise SampleError("segment_invalid")
    return float(start), float(end)


def parsed(text: bytes) -> dict[str, Any]:
    """Read one json object.

    Raises:
        SampleError: reasons ``text_invalid_utf8`` and ``json_invalid``.
    """
    try:
        facts = json.loads(decoded(text), parse_constant=refuse_constant, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise SampleError("json_invalid") from error
    if not isinstance(facts, dict):
        raise SampleError("json_invalid")
    return facts


def finite(number: str) -> float:
    """Read a number; one beyond all floats would be written as Infinity, which is no json.

    Raises:
        ValueError: it is.
    """
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is too large")
    return value


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which are no json, though Python's reader takes them."""
    raise ValueError(name)


def decoded(text: bytes) -> str:
    """Read UTF-8.

    Raises:
        SampleError: reason ``text_invalid_utf8``.
    """
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise SampleError("text_invalid_utf8") from error


def stated_captions(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the caption and the further captions of a record, each once.

    Raises:
        SampleError: as ``captions_of``.
    """
    further = facts.get("captions", [])
    if not isinstance(further, list):
        raise SampleError("text_not_a_string")
    texts = ([facts["caption"]] if "caption" in facts else []) + further
    if not texts:
        raise SampleError("text_missing")
    return tuple(dict.fromkeys(checked_text(text) for text in texts))


def checked_text(text: object) -> str:
    """Return a text that can be used as it is.

    Raises:
        SampleError: reasons ``text_empty``, ``text_not_a_string``, ``text_too_long``, ``text_invalid_utf8``.
    """
    if not isinstance(text, str):
        raise SampleError("text_not_a_string")
    if not text.strip():
        raise SampleError("text_empty")
    if len(text) > MAX_CAPTION_LENGTH:
        raise SampleError("text_too_long")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which json can spell as an escape
        raise SampleError("text_invalid_utf8") from error
    return text

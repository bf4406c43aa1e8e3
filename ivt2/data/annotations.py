"""Captions and labels: read from json lines, packed into shards, and read back from a sample's members.

A record names a media file and says what it shows; in a shard the same facts are the sample's ``json`` member:
``{"caption": str, "captions": [str, ...], "label": str, "start_s": float, "end_s": float, ...}``. A shard of another
tool may have the caption as a ``txt`` member instead.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from ivt2.batch import Skipped
from ivt2.data.ledger import Ledger, SampleError
from ivt2.data.shards import Manifest, ShardWriter
from ivt2.data.tar_index import AUDIO_TYPES, IMAGE_TYPES, VIDEO_TYPES
from ivt2.errors import InputError

MAX_CAPTION_LENGTH = 20_000
"""Characters; a paragraph of dense captions has some thousand, a page pasted by mistake has more."""
MAX_MEDIA_BYTES = 512 << 20
"""Larger files are not packed; the decoder refuses them too."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One record of an annotation file.

    Args:
        file: path of the media file, relative to the media folder.
        captions: at least one; the first one is *the* caption where only one is used.
        label: name of the action, if any.
        start_s: beginning of what the captions describe, in seconds.
        end_s: its end, in seconds.
        facts: whatever else the record says; kept in the json member.
    """

    file: str
    captions: tuple[str, ...]
    label: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_member(self) -> dict[str, Any]:
        """Return the json member of the sample in a shard."""
        member: dict[str, Any] = {"caption": self.captions[0], "captions": list(self.captions)}
        for name in ("label", "start_s", "end_s"):
            if (value := getattr(self, name)) is not None:
                member[name] = value
        return {**self.facts, **member}


def read_annotations(path: str | Path, *, source: str) -> Iterator[Annotation | Skipped]:
    """Read an annotation file of one json object on each line; blank lines are passed over.

    Args:
        path: the file.
        source: name that skipped records are entered under.

    Returns:
        For each record, in order, what it says or why it cannot be used (then its key is ``<file name>:<line>``).

    Raises:
        InputError: when the file cannot be read.
    """
    path = Path(path)
    with _lines(path) as lines:
        for number, line in lines:
            yield _read_record(line, source, f"{path.name}:{number}")


def count_records(path: str | Path) -> int:
    """Return how many records an annotation file has, good ones and bad ones.

    Raises:
        InputError: when the file cannot be read.
    """
    with _lines(Path(path)) as lines:
        return sum(1 for _ in lines)


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
            return list(_captions(facts))
    if "txt" in members:
        return [_checked(_decoded(members["txt"]))]
    raise SampleError("text_missing")


def facts_of(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the ``json`` member of a sample, empty when there is none.

    Raises:
        SampleError: reasons ``text_invalid_utf8`` and ``json_invalid``.
    """
    return _parsed(members["json"]) if "json" in members else {}


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


def pack(
    records: Iterable[Annotation | Skipped],
    media_root: str | Path,
    folder: str | Path,
    *,
    source: str,
    ledger: Ledger,
    max_samples: int = 1000,
    max_bytes: int = 1 << 30,
    overwrite: bool = False,
    on_record: Callable[[str], None] | None = None,
) -> Manifest:
    """Pack annotated media files into shards.

    Args:
        records: as ``read_annotations`` gives them.
        media_root: folder that the records' files are relative to.
        folder: where the shards go.
        source: name that records which cannot be used are entered under.
        ledger: counts them and stops beyond its budget.
        max_samples: samples of a shard.
        max_bytes: bytes of a shard.
        overwrite: replace shards that are there.
        on_record: called with the name of each record after it was packed or skipped, for a progress bar.

    Returns:
        The manifest as written.

    Raises:
        InputError: when the media folder is absent, the shard folder cannot be written or nothing could be packed.
    """
    media_root = Path(media_root)
    if not media_root.is_dir():
        raise InputError(f"{media_root}: no such folder; give the folder that the files of the annotations lie in")
    keys: set[str] = set()
    with ShardWriter(folder, max_samples=max_samples, max_bytes=max_bytes, overwrite=overwrite) as writer:
        for record in records:
            ledger.add_seen(1)
            name = record.key if isinstance(record, Skipped) else record.file
            try:
                kind, media = _media(record, media_root)
            except SampleError as error:
                ledger.add(Skipped(source, name, error.reason))
            else:
                assert isinstance(record, Annotation)
                key = _free_key(record.file, keys)
                writer.write(key, {kind: media, "json": record.to_member()}, _duration_s(record))
            if on_record is not None:
                on_record(name)
    return writer.manifest


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[tuple[int, bytes]]]:
    """Numbered lines of a file that are not blank."""
    try:
        with path.open("rb") as file:
            yield ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file of one json object a line") from error


def _read_record(line: bytes, source: str, key: str) -> Annotation | Skipped:
    try:
        facts = _parsed(line)
        file = facts.pop("file", None)
        if not isinstance(file, str):
            raise SampleError("file_missing")
        captions = _captions(facts)
        label = facts.pop("label", None)
        if label is not None:
            label = _checked(label)
        if "start_s" in facts or "end_s" in facts:
            segment_of(facts)
    except SampleError as error:
        return Skipped(source, key, error.reason)
    start_s, end_s = facts.pop("start_s", None), facts.pop("end_s", None)
    facts = {name: value for name, value in facts.items() if name not in {"caption", "captions"}}
    return Annotation(file=file, captions=captions, label=label, start_s=start_s, end_s=end_s, facts=facts)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(_decoded(text), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SampleError("json_invalid") from error
    if not isinstance(facts, dict):
        raise SampleError("json_invalid")
    return facts


def _refuse_constant(name: str) -> NoReturn:
    """NaN and Infinity are no json, though Python's reader takes them."""
    raise ValueError(name)


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise SampleError("text_invalid_utf8") from error


def _captions(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The caption and the further captions of a record, each once."""
    further = facts.get("captions", [])
    if not isinstance(further, list):
        raise SampleError("text_not_a_string")
    texts = ([facts["caption"]] if "caption" in facts else []) + further
    if not texts:
        raise SampleError("text_missing")
    return tuple(dict.fromkeys(_checked(text) for text in texts))


def _checked(text: object) -> str:
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


def _media(record: Annotation | Skipped, media_root: Path) -> tuple[str, bytes]:
    """Type and content of a record's file."""
    if isinstance(record, Skipped):
        raise SampleError(record.reason)
    path = PurePosixPath(record.file)
    kind = path.suffix.removeprefix(".").lower()
    if path.is_absolute() or ".." in path.parts:
        raise SampleError("file_outside_media_root")
    if kind not in {*VIDEO_TYPES, *AUDIO_TYPES, *IMAGE_TYPES}:
        raise SampleError("file_type_unknown")
    try:
        file = media_root / path
        if not file.is_file():
            raise SampleError("file_missing")
        if file.stat().st_size > MAX_MEDIA_BYTES:
            raise SampleError("file_too_large")
        return kind, file.read_bytes()
    except (OSError, ValueError) as error:
        raise SampleError("file_unreadable") from error


def _free_key(file: str, keys: set[str]) -> str:
    """A key that still tells the file: its path without the type, dots and slashes replaced, numbered when taken."""
    stem = str(PurePosixPath(file).with_suffix(""))
    stem = "".join(letter if letter.isprintable() and letter not in "./\\" else "_" for letter in stem)
    key, number = stem, 1
    while key in keys:
        number += 1
        key = f"{stem}_{number}"
    keys.add(key)
    return key


def _duration_s(record: Annotation) -> float | None:
    duration_s = record.facts.get("duration_s")
    return float(duration_s) if isinstance(duration_s, int | float) else None

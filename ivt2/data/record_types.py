"""Record types: what the fields of a record mean, whatever dataset and file format they come from.

A dataset's yaml names a record type and the fields that hold its content. Fields without a meaning are kept as facts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ivt2.data.annotations import (
    MEMBER_NAMES,
    Annotation,
    FrameFiles,
    checked_text,
    decoded,
    fields_of,
    filled,
    seconds,
    segment_of,
    stated_captions,
)
from ivt2.data.ledger import SampleError
from ivt2.errors import InputError

MAX_FRAMES = 200_000
"""Frames of a folder; the decoder refuses more too."""


class AnnotationRecord:
    """The fields of ``Annotation`` under their own names: what a plain jsonl holds, and a shard's json member."""

    def __call__(self, fields: Mapping[str, Any]) -> Annotation:
        """Read one record; something must be said of the file.

        Raises:
            SampleError: reasons ``file_missing``, ``segment_invalid``, ``label_invalid``, ``options_invalid``,
                ``answer_invalid``, ``turns_invalid`` and those of captions.
        """
        if not isinstance(file := fields.get("file"), str):
            raise SampleError("file_missing")
        says: dict[str, Any] = {}
        if "caption" in fields or "captions" in fields:
            says["captions"] = stated_captions(fields)
        if fields.get("label") is not None:
            says["label"] = checked_text(fields["label"])
        if (index := fields.get("class_index")) is not None:
            says["class_index"] = _whole(index, "label_invalid")
        if "options" in fields:
            says["options"] = _texts(fields["options"], "options_invalid")
            says["answers"] = _answers(fields.get("answers"), len(says["options"]))
        if "turns" in fields:
            says["turns"] = _turns(fields["turns"])
        if not says:
            raise SampleError("text_missing")
        segment_of(fields)
        facts = {name: value for name, value in fields.items() if name not in {"file", *MEMBER_NAMES}}
        return Annotation(file=file, start_s=fields.get("start_s"), end_s=fields.get("end_s"), facts=facts, **says)


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """A clip with captions.

    Args:
        file: templates of the media file's path (``{field}``, ``{field:06}`` with leading zeros); the first one whose
            fields are all there counts.
        captions: fields that hold a caption or a list of them; those that are there count, in this order.
        paragraph: a list of captions is one text, its sentences in order (retrieval by paragraphs).
        kinds: further fields of captions by the kind of them (video, audio, fused): used as captions where not empty,
            and kept by kind as ``caption_kinds``.
        speech: field of what is said in the clip; kept in ``caption_kinds``, no caption.
        start: field of the beginning, in seconds or as h:mm:ss; -1 is none.
        end: field of the end.
        first_s: seconds from the beginning on that count, where the end is not earlier.
        duration: field of the playing time of the whole file, in seconds.
        num_frames: field of the number of frames where the file is a folder of them.
        frames: template of a frame's name, numbers from 1: ``img_{:05}.jpg``.
        fps: of frame folders, which do not say.

    Raises:
        InputError: when a template has no place for a field, or ``fps`` is not from 0.01 to 1000, or ``first_s`` not
            above 0.
    """

    file: Sequence[str]
    captions: Sequence[str] = ()
    paragraph: bool = False
    kinds: Mapping[str, str] = field(default_factory=dict)
    speech: str | None = None
    start: str | None = None
    end: str | None = None
    first_s: float | None = None
    duration: str | None = None
    num_frames: str | None = None
    frames: str = "img_{:05}.jpg"
    fps: float = 30.0

    def __post_init__(self) -> None:
        for template in (*self.file, self.frames):
            if not fields_of(template):
                raise InputError(f"{template}: has no place for a field, such as {{video}} or {{:05}}")
        if not 0.01 <= self.fps <= 1000:
            raise InputError(f"fps={self.fps}: give a number from 0.01 to 1000")
        if self.first_s is not None and not self.first_s > 0:
            raise InputError(f"first_s={self.first_s}: give a number of seconds above 0")

    def __call__(self, fields: Mapping[str, Any]) -> Annotation:
        """Read one record.

        Raises:
            SampleError: reasons ``file_missing``, ``segment_invalid``, ``num_frames_invalid``, those of captions and
                those of the type.
        """
        file = next((path for path in (filled(template, fields) for template in self.file) if path), None)
        if file is None:
            raise SampleError("file_missing")
        start_s, end_s, duration_s = (seconds(fields.get(name or "")) for name in (self.start, self.end, self.duration))
        if self.first_s is not None:
            first_end_s = (start_s or 0.0) + self.first_s
            end_s = first_end_s if end_s is None else min(end_s, first_end_s)
        segment_of({"start_s": start_s, "end_s": end_s})
        if start_s is not None and duration_s is not None and start_s >= duration_s:
            raise SampleError("segment_invalid")
        kinds = self._kinds(fields)
        spoken = kinds.pop("speech", ())
        captions = [*self._captions(fields), *(text for texts in kinds.values() for text in texts)]
        says = self._says(fields)
        if not captions and not says:
            raise SampleError("text_missing")
        facts = self._facts(fields)
        if kinds or spoken:
            facts["caption_kinds"] = {kind: list(texts) for kind, texts in {**kinds, "speech": spoken}.items() if texts}
        if duration_s is not None:
            facts["duration_s"] = duration_s
        return Annotation(
            file=file,
            captions=tuple(dict.fromkeys(captions)),
            start_s=start_s,
            end_s=end_s,
            frames=self._frames(fields),
            facts=facts,
            **says,
        )

    def _says(self, fields: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """What a record of this type holds besides captions, as arguments of ``Annotation``."""
        return {}

    def _meant(self) -> set[str | None]:
        """Fields with a meaning."""
        named = [path[1:-1] for path in self.file]  # a path that is made of an id leaves the id among the facts
        times = (self.start, self.end, self.duration, self.num_frames)
        return {*named, *self.captions, *self.kinds.values(), self.speech, *times}

    def _facts(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The other fields; a name that means something in a shard's json member gets another one."""
        meant = self._meant()
        return {
            f"source_{name}" if name in MEMBER_NAMES else name: value
            for name, value in fields.items()
            if name not in meant
        }

    def _captions(self, fields: Mapping[str, Any]) -> list[str]:
        there = [fields[name] for name in self.captions if name in fields]
        texts = [_texts(value, "text_missing") for value in there]
        if self.paragraph:
            return [checked_text(" ".join(sentence.strip() for sentence in sentences)) for sentences in texts]
        return [text for several in texts for text in several]

    def _kinds(self, fields: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Texts by kind; a clip without, say, speech has an empty field."""
        found = {}
        for kind, name in {**self.kinds, **({"speech": self.speech} if self.speech else {})}.items():
            value = fields.get(name)
            several = value if isinstance(value, list) else [value]
            texts = [text for text in several if text is not None and text != ""]
            if texts:
                found[kind] = _texts(texts, "text_missing")
        return found

    def _frames(self, fields: Mapping[str, Any]) -> FrameFiles | None:
        if self.num_frames is None:
            return None
        count = _whole(fields.get(self.num_frames), "num_frames_invalid")
        if not 1 <= count <= MAX_FRAMES:
            raise SampleError("num_frames_invalid")
        return FrameFiles(self.frames, count, self.fps)


@dataclass(frozen=True, kw_only=True)
class LabelRecord(ClipRecord):
    """A clip of a class.

    Args:
        label: field of the class, its name or its number.
        label_text: field of the name where ``label`` is the number and there is no list of names.
        num_classes: numbers and lists of another length are refused; None where any name will do.
        first_class: number of the first class in the list; a shard counts from 0.
        class_names: file of all names in order, one a line, or a json list, or a json object from name to number.
    """

    label: str
    label_text: str | None = None
    num_classes: int | None = None
    first_class: int = 0
    class_names: str | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, empty where they are not known."""
        names = () if self.class_names is None else read_class_names(self.class_names)
        if names and self.num_classes not in {None, len(names)}:
            raise InputError(f"{self.class_names}: has {len(names)} names for {self.num_classes} classes; correct it")
        return names

    def _says(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        value = fields.get(self.label)
        if value is None or value == "":
            raise SampleError("label_missing")
        if isinstance(value, str) and not value.strip().removeprefix("-").isdecimal():
            return self._by_name(checked_text(value))
        if str(value).strip().startswith("-"):
            raise SampleError("label_unknown")
        index = _whole(value, "label_invalid") - self.first_class
        count = len(self.names) or self.num_classes
        if index < 0 or (count is not None and index >= count):
            raise SampleError("label_unknown")
        if not self.names and self.label_text is None:
            return {"class_index": index}
        label = self.names[index] if self.names else _bare(checked_text(fields.get(self.label_text or "")))
        return {"class_index": index, "label": label}

    def _by_name(self, label: str) -> dict[str, Any]:
        bare = _bare(label)
        if not self.names:
            return {"label": bare}
        if bare not in self._places:
            raise SampleError("label_unknown")
        return {"label": bare, "class_index": self._places[bare]}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def _meant(self) -> set[str | None]:
        return {*super()._meant(), self.label, self.label_text}


@dataclass(frozen=True, kw_only=True)
class ChoiceRecord(ClipRecord):
    """A clip with options of which one or several are right.

    Args:
        options: field of the list of options.
        answer: field of the right one's place, from 0, or of a list as long as the options, 1 for each right one.
    """

    options: str
    answer: str

    def _says(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        options = _texts(fields.get(self.options), "options_invalid")
        answer = fields.get(self.answer)
        if not isinstance(answer, list):
            return {"options": options, "answers": _answers([answer], len(options))}
        if len(answer) != len(options) or any(not isinstance(hot, int | float) or hot not in {0, 1} for hot in answer):
            raise SampleError("answer_invalid")
        return {"options": options, "answers": tuple(place for place, hot in enumerate(answer) if hot)}

    def _meant(self) -> set[str | None]:
        return {*super()._meant(), self.options, self.answer}


@dataclass(frozen=True, kw_only=True)
class ConversationRecord(ClipRecord):
    """A clip or image with a conversation about it.

    Args:
        turns: field of the list of ``{"i": instruction, "q": question, "a": answer}``; instruction and question may be
            absent or empty.
    """

    turns: str

    def _says(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {"turns": _turns(fields[self.turns])} if self.turns in fields else {}

    def _meant(self) -> set[str | None]:
        return {*super()._meant(), self.turns}


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Read the names of classes in the order of their numbers, brackets of templates left out.

    Args:
        path: one name a line; or a json list of names; or a json object from name to number.

    Raises:
        InputError: when the file cannot be read, has a name twice or leaves a number out.
    """
    try:
        text = decoded(Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf"))
        listed = json.loads(text) if text.lstrip().startswith(("[", "{")) else text.splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the list of class names") from error
    except (ValueError, RecursionError, SampleError) as error:
        raise InputError(f"{path}: is no list of class names ({error}); give one name a line") from error
    if isinstance(listed, dict):
        numbers = {str(number): name for name, number in listed.items()}
        if set(numbers) != {str(number) for number in range(len(listed))}:
            raise InputError(f"{path}: does not number its {len(listed)} names from 0 without a gap; correct it")
        listed = [numbers[str(number)] for number in range(len(listed))]
    while listed and isinstance(listed[-1], str) and not listed[-1].strip():
        listed.pop()
    if not listed or not all(isinstance(name, str) and name.strip() for name in listed):
        raise InputError(f"{path}: has an entry that is no name; give one name a line")
    names = tuple(_bare(name) for name in listed)
    if len(set(names)) < len(names):
        raise InputError(f"{path}: has a name twice; correct it")
    return names


def _bare(name: str) -> str:
    """A class name without the brackets that mark a template's places."""
    return name.strip().replace("[", "").replace("]", "")


def _whole(value: object, reason: str) -> int:
    """A number that is 0 or more, given as such or in digits."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SampleError(reason)
    return value


def _texts(value: object, reason: str) -> tuple[str, ...]:
    """A text or a list of texts, of which there must be one."""
    several = value if isinstance(value, list) else [value]
    if value is None or not several:
        raise SampleError(reason)
    return tuple(checked_text(text) for text in several)


def _answers(value: object, num_options: int) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise SampleError("answer_invalid")
    places = tuple(_whole(place, "answer_invalid") for place in value)
    if any(place >= num_options for place in places) or len(set(places)) < len(places):
        raise SampleError("answer_invalid")
    return places


def _turns(value: object) -> tuple[Mapping[str, str], ...]:
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise SampleError("turns_invalid")
    return tuple(_turn(turn) for turn in value)


def _turn(turn: Mapping[str, Any]) -> Mapping[str, str]:
    texts = {name: turn.get(name) or "" for name in ("i", "q", "a")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise SampleError("turns_invalid")
    return {**{name: text and checked_text(text) for name, text in texts.items()}, "a": checked_text(texts["a"])}

"""Scenes of the embedded dataset: what each clip shows, and the captions, labels and questions about it.

A clip shows two shapes on a dark ground. The first one does something (moves left, right, up or down, grows, shrinks)
within a window of time and rests before and after; the second one stays where it is. A tone sounds during the window.
Seven words make a combination (colour, shape, size and motion of the first object, colour and shape of the second, and
where the first is as seen from the second); a hash of the combination decides, once for every seed, whether clips of
training, of validation or of test may show it. Everything is a pure function of (split, seed, index).

The motion sets the tone, so that sound tells nothing that eyes could not tell. In the variant of twins two clips share
the seven words and differ in their tones: only ears can tell which of the two a caption describes.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar, get_args

import numpy as np

from ivt2.errors import InputError

Split = Literal["train", "val", "test"]
Colour = Literal["red", "green", "blue", "yellow", "purple", "white"]
Shape = Literal["ring", "square", "triangle", "cross"]
Size = Literal["small", "big"]
Motion = Literal["left", "right", "up", "down", "grow", "shrink"]
Relation = Literal["above", "below", "left of", "right of"]
Tone = Literal["low", "middle", "high"]
Facts: TypeAlias = dict[str, object]
_Words = TypeVar("_Words")

SPLITS: tuple[Split, ...] = get_args(Split)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
SIZES: tuple[Size, ...] = get_args(Size)
MOTIONS: tuple[Motion, ...] = get_args(Motion)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
TONES: tuple[Tone, ...] = get_args(Tone)

GENERATOR_VERSION = 1
"""Raised whenever the same (split, seed, index) would give another clip or other facts."""
VOCABULARY_FILE = Path(__file__).with_name("synthetic_vocab.txt")
"""Every word of the grammar, one token a line in BERT's id layout."""
FPS = 8
MIN_FRAMES, MAX_FRAMES = 16, 24
NUM_PARTS = 10
"""The combinations fall into so many equal parts: one is for test, one for validation, the others for training."""

TONE_OF_MOTION: dict[Motion, Tone] = {
    "left": "middle",
    "right": "middle",
    "up": "high",
    "down": "low",
    "grow": "low",
    "shrink": "high",
}
INVERSE: dict[Relation, Relation] = {
    "above": "below",
    "below": "above",
    "left of": "right of",
    "right of": "left of",
}
SAID_OF_MOTION: dict[Motion, tuple[str, str]] = {
    "left": ("moves left", "slides leftwards"),
    "right": ("moves right", "slides rightwards"),
    "up": ("moves up", "rises"),
    "down": ("moves down", "falls"),
    "grow": ("grows", "expands"),
    "shrink": ("shrinks", "contracts"),
}
"""The plain words for a motion and a paraphrase."""
_SPLIT_OF_PART: dict[int, Split] = {0: "test", 1: "val"}
_SIZE_SAID: dict[Size, str] = {"small": "little", "big": "large"}


class Combination(NamedTuple):
    """The seven words that a caption names and that the split is decided by."""

    colour: Colour
    shape: Shape
    size: Size
    motion: Motion
    second_colour: Colour
    second_shape: Shape
    relation: Relation
    """Where the first object is as seen from the second."""

    @property
    def split(self) -> Split:
        """The only split whose clips may show this combination; the same for every seed."""
        return split_of(self)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip: its combination and the free details that no caption names.

    Args:
        key: name of the sample in its tar file, without dots.
        combination: the words.
        num_frames: length of the clip; frame i is shown at i / FPS seconds.
        start_frame: last frame before anything changes.
        end_frame: first frame in which the motion is complete.
        travel_ratio: how far within its bounds the first object moves or changes size, in [0, 1].
        offset: displacement of both objects across the relation's axis, first then second, each in [-1, 1].
        background: red, green and blue of the ground, dark.
        brightness: factor on the colours of both objects.
        variant: which paraphrase stands first and which question is asked, in [0, 32).
        own_tone: tone of a twin, whatever the motion; None for a clip that has none.
    """

    key: str
    combination: Combination
    num_frames: int
    start_frame: int
    end_frame: int
    travel_ratio: float
    offset: tuple[float, float]
    background: tuple[int, int, int]
    brightness: float
    variant: int
    own_tone: Tone | None = None

    @property
    def tone(self) -> Tone:
        """Pitch of the tone that sounds during the motion; a function of it, so that eyes can tell, but for twins."""
        return self.own_tone or TONE_OF_MOTION[self.combination.motion]

    @property
    def start_s(self) -> float:
        """Beginning of the event in seconds."""
        return self.start_frame / FPS

    @property
    def end_s(self) -> float:
        """End of the event in seconds."""
        return self.end_frame / FPS

    @property
    def duration_s(self) -> float:
        """Length of the clip in seconds."""
        return self.num_frames / FPS

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """Paraphrases, each of which names every attribute and the tone; the first one is the caption."""
        return self._turned(_captions(self.combination, self.tone))

    @property
    def captions_by_kind(self) -> dict[str, tuple[str, ...]]:
        """Paraphrases of what is seen (``video``), heard (``audio``) and both (``audio_video``, ``fused``)."""
        both = self.captions
        return {
            "video": self._turned(_captions_seen(self.combination)),
            "audio": self._turned(_captions_heard(self.tone)),
            "audio_video": both,
            "fused": both,
        }

    def _turned(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """The texts in their order, from the one that stands first in this scene."""
        first = self.variant % len(texts)
        return texts[first:] + texts[:first]

    def facts(self) -> Facts:
        """Return the json member: captions (of twins by kind too), action label, event, question and attributes."""
        question, answers, answer = _question(self.combination, self.tone, self.variant)
        kinds = {kind: list(texts) for kind, texts in self.captions_by_kind.items()}
        return {
            "caption": self.captions[0],
            "captions": list(self.captions),
            **({"caption_kinds": kinds} if self.own_tone else {}),
            "label": self.combination.motion,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "duration_s": self.duration_s,
            "question": question,
            "answers": list(answers),
            "answer": answer,
            "attributes": {**self.combination._asdict(), "tone": self.tone},
            "fps": FPS,
            "num_frames": self.num_frames,
        }


def split_of(words: Iterable[str]) -> Split:
    """Return the only split that may hold what these words describe, whatever the seed."""
    digest = hashlib.blake2b("/".join(words).encode(), digest_size=8).digest()
    return _SPLIT_OF_PART.get(int.from_bytes(digest, "little") % NUM_PARTS, "train")


@cache
def combinations(split: Split) -> tuple[Combination, ...]:
    """Return every combination of a split, always in the same order.

    Two objects never share a colour, so a colour says which is meant.
    """
    words = itertools.product(COLOURS, SHAPES, SIZES, MOTIONS, COLOURS, SHAPES, RELATIONS)
    every = (Combination(*word) for word in words if word[0] != word[4])
    return tuple(combination for combination in every if combination.split == split)


def make_scenes(split: Split, num: int, seed: int, *, twins: bool = False) -> list[Scene]:
    """Draw scenes without replacement; scene i does not depend on how many are drawn.

    Training repeats combinations (with other free details) once all were shown; validation and test never do, so that
    there a caption describes one clip only.

    Args:
        split: which combinations may occur.
        num: how many scenes.
        seed: changes order and free details, never the split.
        twins: scenes 2i and 2i + 1 share their combination and have different tones, drawn apart from it; their free
            details differ too. A caption that names the tone then describes one clip, one that does not describes two.

    Raises:
        InputError: when validation or test has fewer combinations than asked for.
    """
    size = 2 if twins else 1
    drawn = draw_words(combinations(split), "order", split=split, num=math.ceil(num / size), seed=seed)
    return [
        replace(
            _scene(drawn[index // size], split, seed, index), own_tone=_own_tone(split, seed, index) if twins else None
        )
        for index in range(num)
    ]


def draw_words(eligible: Sequence[_Words], name: str, *, split: Split, num: int, seed: int) -> list[_Words]:
    """Draw word combinations without replacement; training starts over once all were drawn.

    Args:
        eligible: those of the split, in a fixed order.
        name: of what is drawn; other names give other orders.
        split: which one it is.
        num: how many.
        seed: changes the order.

    Raises:
        InputError: when validation or test has fewer combinations than asked for.
    """
    if split != "train" and num > len(eligible):
        raise InputError(
            f"num_clips={num}: the {split} split has {len(eligible)} combinations; ask for at most as many"
        )
    words: list[_Words] = []
    for turn in range(math.ceil(num / len(eligible))):
        draws = uniform(len(eligible), name, split, seed, turn)
        order = sorted(range(len(eligible)), key=draws.__getitem__)[: num - len(words)]
        words += [eligible[place] for place in order]
    return words


def uniform(num: int, *parts: str | int) -> list[float]:
    """Return numbers in [0, 1) that depend on the parts alone (counter-based, the same on every machine)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).digest()
    draws: list[float] = (
        np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(num).tolist()
    )
    return draws


def _own_tone(split: Split, seed: int, index: int) -> Tone:
    """Tone of a twin: any for the first of two, one of the others for the second."""
    draws = uniform(2, "tones", split, seed, index // 2)
    first = int(draws[0] * len(TONES))
    return TONES[first if index % 2 == 0 else (first + 1 + int(draws[1] * (len(TONES) - 1))) % len(TONES)]


def _between(draw: float, low: int, high: int) -> int:
    """An integer in [low, high] from a uniform draw."""
    return low + int(draw * (high - low + 1))


def _scene(combination: Combination, split: Split, seed: int, index: int) -> Scene:
    """The free details of one clip.

    The event lies within the middle six eighths of the clip, so the first and the last of four frames taken from the
    middles of equal quarters show its two ends.
    """
    draws = uniform(12, "scene", split, seed, index)
    num_frames = _between(draws[0], MIN_FRAMES, MAX_FRAMES)
    earliest, latest = math.ceil(num_frames / 8), 7 * num_frames // 8
    length = _between(draws[1], math.ceil(3 * num_frames / 8), 5 * num_frames // 8)
    start = _between(draws[2], earliest, latest - length)
    shade = _between(draws[3], 12, 44)
    red, green, blue = (shade + _between(draw, -8, 8) for draw in draws[4:7])
    return Scene(
        key=f"{split}_{index:06d}",
        combination=combination,
        num_frames=num_frames,
        start_frame=start,
        end_frame=start + length,
        travel_ratio=draws[7],
        offset=(2 * draws[8] - 1, 2 * draws[9] - 1),
        background=(red, green, blue),
        brightness=0.88 + 0.12 * draws[10],
        variant=_between(draws[11], 0, 31),
    )


class _Said(NamedTuple):
    """The phrases that captions are made of."""

    motion: str
    other_motion: str
    thing: str
    second: str
    size: str
    other_size: str
    where: str


def _said(words: Combination) -> _Said:
    thing, second = f"{words.colour} {words.shape}", f"{words.second_colour} {words.second_shape}"
    return _Said(*SAID_OF_MOTION[words.motion], thing, second, words.size, _SIZE_SAID[words.size], words.relation)


def _captions(words: Combination, tone: Tone) -> tuple[str, ...]:
    """Four sentences with the same content."""
    plain, other, thing, second, size, other_size, where = _said(words)
    return (
        f"a {size} {thing} {where} a {second} {plain} with a {tone} tone",
        f"a {tone} tone sounds while a {other_size} {thing} {where} a {second} {other}",
        f"{where} the {second} there is a {size} {thing} that {other} to a {tone} tone",
        f"the {other_size} {thing} {plain}, it is {where} the {second} and the tone is {tone}",
    )


def _captions_seen(words: Combination) -> tuple[str, ...]:
    """The sentences without what is heard."""
    plain, other, thing, second, size, other_size, where = _said(words)
    return (
        f"a {size} {thing} {where} a {second} {plain}",
        f"there is a {other_size} {thing} {where} a {second} that {other}",
        f"{where} the {second} there is a {size} {thing} that {other}",
        f"the {other_size} {thing} {plain}, it is {where} the {second}",
    )


def _captions_heard(tone: Tone) -> tuple[str, ...]:
    """Four sentences that name the tone alone."""
    return (f"a {tone} tone sounds", f"there is a {tone} tone", f"the tone is {tone}", f"what sounds is a {tone} tone")


def _question(words: Combination, tone: Tone, variant: int) -> tuple[str, tuple[str, ...], str]:
    """One of eight questions with its candidate answers and the right one."""
    thing, second = f"{words.colour} {words.shape}", f"{words.second_colour} {words.second_shape}"
    here, there = f"{words.relation} the {second}", f"{INVERSE[words.relation]} the {thing}"
    first_colours = tuple(colour for colour in COLOURS if colour != words.second_colour)
    second_colours = tuple(colour for colour in COLOURS if colour != words.colour)
    questions: tuple[tuple[str, tuple[str, ...], str], ...] = (
        (f"what colour is the object {here}?", first_colours, words.colour),
        (f"what shape is the object {here}?", SHAPES, words.shape),
        (f"what size is the {thing}?", SIZES, words.size),
        (
            f"what does the {thing} do?",
            tuple(SAID_OF_MOTION[motion][0] for motion in MOTIONS),
            SAID_OF_MOTION[words.motion][0],
        ),
        (f"what colour is the object {there}?", second_colours, words.second_colour),
        (f"what shape is the object {there}?", SHAPES, words.second_shape),
        (f"where is the {thing} as seen from the {second}?", RELATIONS, words.relation),
        ("which tone sounds?", TONES, tone),
    )
    return questions[variant // 4 % len(questions)]

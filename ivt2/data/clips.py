"""From the number of a sample to its clip and captions."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from ivt2.batch import Medium
from ivt2.data.annotations import captions_of, checked_text, facts_of, segment_of
from ivt2.data.decode import Backend, DecodeError, decode_image, decode_video
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import SampleError
from ivt2.data.shards import ShardSet
from ivt2.data.sound import SoundReader
from ivt2.data.tar_index import AUDIO_TYPES, IMAGE_TYPES, VIDEO_TYPES
from ivt2.data.text import normalize_caption
from ivt2.data.transforms import Transform

_Value = TypeVar("_Value")

_MEDIA_TYPES = {
    "image": IMAGE_TYPES,
    "video": VIDEO_TYPES,
    "audio": AUDIO_TYPES,
    "audio_video": (*VIDEO_TYPES, *AUDIO_TYPES),
}
_TEXT_TYPES = ("json", "txt")
_FIRST_SAMPLES = 100
"""How many samples with sound and without pictures it takes to call a set one of sounds."""


class Clip(NamedTuple):
    """A sample ready for a batch."""

    video: UInt8[Tensor, "T C H W"] | None
    """None for a sound."""
    captions: list[str]
    """As annotated, the main one first."""
    text: list[str]
    """The captions normalised, as the tokenizer takes them."""
    audio: Float32[Tensor, "F M"] | None = None
    kinds: Mapping[str, list[str]] = MappingProxyType({})
    """Normalised captions of each kind that was asked for."""


class ClipReader:
    """Reads, decodes and transforms the clips of one shard set.

    Args:
        shards: where the samples are.
        choose: gives the frames to decode, from the number of frames to choose from and the sample's generator. Where
            the frame rate varies they are numbers of equal parts of the time, not of frames.
        num_frames: how many frames ``choose`` gives.
        transforms: applied in order; together they must give every clip the same size.
        decoder: library that decodes video.
        trim: choose only among the frames and sounds between ``start_s`` and ``end_s`` of the annotation.
        process: decodes in place of the process that reads; None decodes right here, where an abort in a codec
            library ends the run.
        medium: what the clips are; None looks at the first samples: a set whose first pictures are videos is one of
            videos, otherwise one of images (clips of one frame), and one without pictures is one of sounds.
        sound: reads the sound of ``audio`` and ``audio_video``.
        min_words: captions of fewer normalised words are not used; a sample without any other is left out.
        caption_kinds: kinds of captions (names in ``caption_kinds`` of the json member) that each sample must have.

    Source: pretraining filter by words: reference multi_modality, ``min_caption_length`` (spec stage2 section 3.2).
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        choose: Callable[[int, np.random.Generator], Sequence[int]],
        num_frames: int,
        transforms: Sequence[Transform],
        decoder: Backend = "auto",
        trim: bool = False,
        process: DecoderProcess | None = None,
        medium: Medium | None = None,
        sound: SoundReader | None = None,
        min_words: int = 0,
        caption_kinds: Sequence[str] = (),
    ) -> None:
        self.shards = shards
        self.choose = choose
        self.num_frames = num_frames
        self.transforms = list(transforms)
        self.decoder = decoder
        self.trim = trim
        self.process = process
        self.sound = sound or SoundReader()
        self.min_words = min_words
        self.caption_kinds = tuple(caption_kinds)
        self._medium = medium

    def read(self, index: int, generator: np.random.Generator) -> Clip:
        """Read one sample.

        Args:
            index: position in the shard set.
            generator: of this sample: frames are drawn from it first, then the transforms' choices, then the part of
                a longer sound.

        Raises:
            SampleError: the sample cannot be used; the reason is a word of the decoder, the annotations or the
                shards, or ``video_missing``, ``image_missing``, ``audio_missing``, ``caption_kind_missing`` or
                ``text_too_short``.
        """
        members = self.shards.read(index, self._types).members
        captions, text = self._usable(captions_of(members), self.min_words)
        kinds = self._captions_by_kind(members)
        try:
            video = None if self.medium == "audio" else self._transformed(self._pixels(members, generator), generator)
            audio = self._audio(members, generator) if self.has_sound else None
        except DecodeError as error:
            raise SampleError(error.reason) from error
        return Clip(video, captions, text, audio, kinds)

    @cached_property
    def medium(self) -> Medium:
        """What the clips are."""
        return self._medium or medium_of(self.shards)

    @property
    def has_sound(self) -> bool:
        """Whether the clips have sound."""
        return self.medium in {"audio", "audio_video"}

    @cached_property
    def empty(self) -> UInt8[Tensor, "0 T C H W"]:
        """What a batch holds when none of its samples can be used: no clip, of the size that clips have."""
        blank = torch.zeros(1 if self.medium == "image" else self.num_frames, 3, 256, 256, dtype=torch.uint8)
        return self._transformed(blank, np.random.default_rng(0))[None][:0]

    def close(self) -> None:
        """End the decoder process, if there is one; it starts again when needed."""
        if self.process is not None:
            self.process.close()

    @cached_property
    def _types(self) -> tuple[str, ...]:
        """What is read of a sample: media that are not used stay where they are."""
        media = _MEDIA_TYPES[self.medium]
        if self.has_sound and self.sound.read_from == "video":
            media = VIDEO_TYPES
        return (*_TEXT_TYPES, *media)

    @staticmethod
    def _usable(captions: list[str], min_words: int) -> tuple[list[str], list[str]]:
        """Captions that are long enough, as annotated and normalised."""
        text = [normalize_caption(caption) for caption in captions]
        if not all(text):
            raise SampleError("text_empty")
        long_enough = [len(words.split()) >= min_words for words in text]
        if not any(long_enough):
            raise SampleError("text_too_short")
        return (
            [caption for caption, kept in zip(captions, long_enough, strict=True) if kept],
            [words for words, kept in zip(text, long_enough, strict=True) if kept],
        )

    def _captions_by_kind(self, members: Mapping[str, bytes]) -> dict[str, list[str]]:
        """Normalised captions of each kind; what is said in a clip may be short."""
        if not self.caption_kinds:
            return {}
        stated = facts_of(members).get("caption_kinds")
        found = {}
        for kind in self.caption_kinds:
            texts = stated.get(kind) if isinstance(stated, dict) else None
            if not texts:
                raise SampleError("caption_kind_missing")
            captions = [checked_text(text) for text in (texts if isinstance(texts, list) else [texts])]
            found[kind] = self._usable(captions, 0 if kind == "speech" else self.min_words)[1]
        return found

    def _pixels(self, members: Mapping[str, bytes], generator: np.random.Generator) -> UInt8[Tensor, "T C H W"]:
        if self.medium == "image":
            return decode_image(_first(members, IMAGE_TYPES, "image_missing"), process=self.process)
        data = _first(members, VIDEO_TYPES, "video_missing")
        start_s, end_s = self._segment(members)
        chosen = decode_video(
            data,
            lambda length, _: self.choose(length, generator),
            backend=self.decoder,
            start_s=start_s,
            end_s=end_s,
            by_time=True,
            process=self.process,
        )
        return chosen.frames

    def _audio(self, members: Mapping[str, bytes], generator: np.random.Generator) -> Float32[Tensor, "F M"]:
        start_s, end_s = self._segment(members)
        end_s = None if end_s == float("inf") else end_s
        return self.sound.read(members, generator, start_s=start_s, end_s=end_s, process=self.process)

    def _segment(self, members: Mapping[str, bytes]) -> tuple[float | None, float | None]:
        return segment_of(facts_of(members)) if self.trim else (None, None)

    def _transformed(self, video: Tensor, generator: np.random.Generator) -> Tensor:
        for transform in self.transforms:
            video = transform(video, generator)
        return video


def medium_of(shards: ShardSet) -> Medium:
    """Tell from the types of the first samples what a set holds: ``video``, else ``image``, else ``audio``.

    A set without any media is called one of videos: each of its samples is then known to miss one.
    """
    usable = (set(shards.types(i)) for i in range(len(shards)) if shards.problem(i) is None)
    with_media = (types for types in usable if types & {*VIDEO_TYPES, *IMAGE_TYPES, *AUDIO_TYPES})
    first = list(islice(with_media, 1))
    if first and not first[0] & {*VIDEO_TYPES, *IMAGE_TYPES}:
        first += islice(with_media, _FIRST_SAMPLES - 1)
    types = next((types for types in first if types & {*VIDEO_TYPES, *IMAGE_TYPES}), set())
    if types:
        return "video" if types & set(VIDEO_TYPES) else "image"
    return "audio" if first else "video"


def choose_caption(text: Sequence[str], policy: Literal["random", "first"], generator: np.random.Generator) -> str:
    """Return the normalised caption that a training step uses; nothing is drawn when there is no choice."""
    if policy == "first" or len(text) == 1:
        return text[0]
    return text[int(generator.integers(len(text)))]


def _first(members: Mapping[str, _Value], types: Sequence[str], reason: str) -> _Value:
    for kind in types:
        if kind in members:
            return members[kind]
    raise SampleError(reason)

"""From the number of a sample to its clip and what is said of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from ivt2.batch import Medium
from ivt2.data.annotations import facts_of, segment_of
from ivt2.data.decode import Backend, DecodeError, decode_image, decode_video
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import SampleError
from ivt2.data.shards import ShardSet
from ivt2.data.sound import SoundReader
from ivt2.data.tar_index import AUDIO_TYPES, IMAGE_TYPES, TEXT_TYPES, VIDEO_TYPES
from ivt2.data.transforms import HorizontalFlip, Transform

Content = TypeVar("Content")
_Value = TypeVar("_Value")

_MEDIA_TYPES = {
    "image": IMAGE_TYPES,
    "video": VIDEO_TYPES,
    "audio": AUDIO_TYPES,
    "audio_video": (*VIDEO_TYPES, *AUDIO_TYPES),
}
_FIRST_SAMPLES = 100
"""How many samples with sound and without pictures it takes to call a set one of sounds."""


@dataclass(frozen=True, kw_only=True)
class Clip(Generic[Content]):
    """A sample ready for a batch.

    Args:
        video: None for a sound.
        audio: None where there is no sound.
        content: what is said of the clip: its captions, or the number of its class.
    """

    video: UInt8[Tensor, "T C H W"] | None
    audio: Float32[Tensor, "F M"] | None
    content: Content


class ClipReader(Generic[Content]):
    """Reads, decodes and transforms the clips of one shard set.

    Args:
        shards: where the samples are.
        content: reads what is said of a clip from the members of its sample, before anything is decoded.
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
        flip_except: clips whose fact ``source`` is one of these are not given to ``HorizontalFlip``.

    Source: no flips for one source of a merged list: stage 1 pretraining (spec stage1 section 2.8).
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        content: Callable[[Mapping[str, bytes]], Content],
        choose: Callable[[int, np.random.Generator], Sequence[int]],
        num_frames: int,
        transforms: Sequence[Transform],
        decoder: Backend = "auto",
        trim: bool = False,
        process: DecoderProcess | None = None,
        medium: Medium | None = None,
        sound: SoundReader | None = None,
        flip_except: Sequence[str] = (),
    ) -> None:
        self.shards = shards
        self.content = content
        self.choose = choose
        self.num_frames = num_frames
        self.transforms = list(transforms)
        self.decoder = decoder
        self.trim = trim
        self.process = process
        self.sound = sound or SoundReader()
        self.flip_except = tuple(flip_except)
        self._medium = medium

    def read(self, index: int, generator: np.random.Generator) -> Clip[Content]:
        """Read one sample.

        Args:
            index: position in the shard set.
            generator: of this sample: frames are drawn from it first, then the transforms' choices, then the part of
                a longer sound.

        Raises:
            SampleError: the sample cannot be used; the reason is a word of the decoder, of ``content`` or of the
                shards, or ``video_missing``, ``image_missing`` or ``audio_missing``.
        """
        members = self.shards.read(index, self._types).members
        content = self.content(members)
        try:
            video = None if self.medium == "audio" else self._video(members, generator)
            audio = self._audio(members, generator) if self.has_sound else None
        except DecodeError as error:
            raise SampleError(error.reason) from error
        return Clip(video=video, audio=audio, content=content)

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
        return _transformed(blank, self.transforms, np.random.default_rng(0))[None][:0]

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
        return (*TEXT_TYPES, *media)

    def _video(self, members: Mapping[str, bytes], generator: np.random.Generator) -> UInt8[Tensor, "T C H W"]:
        keeps_sides = bool(self.flip_except) and facts_of(members).get("source") in self.flip_except
        transforms = without_flips(self.transforms) if keeps_sides else self.transforms
        return _transformed(self._pixels(members, generator), transforms, generator)

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


def without_flips(transforms: Sequence[Transform]) -> list[Transform]:
    """Return the transforms for clips in which left and right matter."""
    return [transform for transform in transforms if not isinstance(transform, HorizontalFlip)]


def _transformed(video: Tensor, transforms: Sequence[Transform], generator: np.random.Generator) -> Tensor:
    for transform in transforms:
        video = transform(video, generator)
    return video


def _first(members: Mapping[str, _Value], types: Sequence[str], reason: str) -> _Value:
    for kind in types:
        if kind in members:
            return members[kind]
    raise SampleError(reason)

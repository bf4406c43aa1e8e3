"""From the number of a sample to its clip and captions."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ivt2.data.annotations import captions_of, facts_of, segment_of
from ivt2.data.decode import Backend, DecodeError, decode_image, decode_video
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import SampleError
from ivt2.data.shards import ShardSet
from ivt2.data.tar_index import IMAGE_TYPES, VIDEO_TYPES
from ivt2.data.text import normalize_caption
from ivt2.data.transforms import Transform

_Value = TypeVar("_Value")


class Clip(NamedTuple):
    """A sample ready for a batch."""

    video: UInt8[Tensor, "T C H W"]
    captions: list[str]
    """As annotated, the main one first."""
    text: list[str]
    """The captions normalised, as the tokenizer takes them."""


class ClipReader:
    """Reads, decodes and transforms the clips of one shard set.

    A set whose first samples are images without video is a set of images: its clips have one frame.

    Args:
        shards: where the samples are.
        choose: gives the frames to decode, from the number of frames to choose from and the sample's generator. Where
            the frame rate varies they are numbers of equal parts of the time, not of frames.
        num_frames: how many frames ``choose`` gives.
        transforms: applied in order; together they must give every clip the same size.
        decoder: library that decodes video.
        trim: choose only among the frames between ``start_s`` and ``end_s`` of the annotation.
        process: decodes in place of the process that reads; None decodes right here, where an abort in a codec
            library ends the run.
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
    ) -> None:
        self.shards = shards
        self.choose = choose
        self.num_frames = num_frames
        self.transforms = list(transforms)
        self.decoder = decoder
        self.trim = trim
        self.process = process

    def read(self, index: int, generator: np.random.Generator) -> Clip:
        """Read one sample.

        Args:
            index: position in the shard set.
            generator: of this sample: frames are drawn from it first, then the transforms' choices.

        Raises:
            SampleError: the sample cannot be used; the reason is a word of the decoder, the annotations or the
                shards, or ``video_missing`` or ``image_missing``.
        """
        members = self.shards.read(index).members
        captions = captions_of(members)
        text = [normalize_caption(caption) for caption in captions]
        if not all(text):
            raise SampleError("text_empty")
        try:
            pixels = self._pixels(members, generator)
        except DecodeError as error:
            raise SampleError(error.reason) from error
        return Clip(self._transformed(pixels, generator), captions, text)

    @cached_property
    def image_set(self) -> bool:
        """Whether the clips are images."""
        usable = (self.shards.types(i) for i in range(len(self.shards)) if self.shards.problem(i) is None)
        types: set[str] = next((set(kinds) for kinds in usable if {*VIDEO_TYPES, *IMAGE_TYPES} & set(kinds)), set())
        return bool(types & set(IMAGE_TYPES)) and not types & set(VIDEO_TYPES)

    @cached_property
    def empty(self) -> UInt8[Tensor, "0 T C H W"]:
        """What a batch holds when none of its samples can be used: no clip, of the size that clips have."""
        blank = torch.zeros(1 if self.image_set else self.num_frames, 3, 256, 256, dtype=torch.uint8)
        return self._transformed(blank, np.random.default_rng(0))[None][:0]

    def close(self) -> None:
        """End the decoder process, if there is one; it starts again when needed."""
        if self.process is not None:
            self.process.close()

    def _pixels(self, members: Mapping[str, bytes], generator: np.random.Generator) -> UInt8[Tensor, "T C H W"]:
        if self.image_set:
            return decode_image(_first(members, IMAGE_TYPES, "image_missing"), process=self.process)
        data = _first(members, VIDEO_TYPES, "video_missing")
        start_s, end_s = segment_of(facts_of(members)) if self.trim else (None, None)
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

    def _transformed(self, video: Tensor, generator: np.random.Generator) -> Tensor:
        for transform in self.transforms:
            video = transform(video, generator)
        return video


def choose_caption(clip: Clip, policy: Literal["random", "first"], generator: np.random.Generator) -> str:
    """Return the normalised caption that a training step uses; nothing is drawn when there is no choice."""
    if policy == "first" or len(clip.text) == 1:
        return clip.text[0]
    return clip.text[int(generator.integers(len(clip.text)))]


def _first(members: Mapping[str, _Value], types: Sequence[str], reason: str) -> _Value:
    for kind in types:
        if kind in members:
            return members[kind]
    raise SampleError(reason)

"""Makes batches of clips: each is a function of its step or its place in an evaluation set alone.

What is read is the same for all batches (``Samples``); a collate function says what they become: clips with captions
(``MediaTextCollate``, ``RetrievalCollate``) or with the numbers of their classes (``collate_clips``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import NotRequired, TypedDict

from ivt2.batch import ClipBatch, MediaTextBatch, RetrievalBatch, Skipped, TextTokens
from ivt2.data.captions import Captions, choose_caption
from ivt2.data.clips import Clip, ClipReader, Content
from ivt2.data.ledger import SampleError
from ivt2.data.mixing import Step
from ivt2.data.order import Indices
from ivt2.data.sound import NUM_MELS, NUM_ROWS
from ivt2.errors import InputError
from ivt2.ops.random import derive_seed

Tokenizer = Callable[[list[str]], tuple[Tensor, Tensor]]


class Accounted(TypedDict):
    """What every batch holds for the ledger: samples used and skipped."""

    key: list[str]
    skipped: list[Skipped]


Batch = TypeVar("Batch", bound=Accounted)


class _Media(TypedDict):
    """What batches hold of their clips."""

    video: NotRequired[UInt8[Tensor, "B T C H W"]]
    audio: NotRequired[Float32[Tensor, "B F M"]]


class _Texts(TypedDict):
    """What a batch holds of captions by kind."""

    texts: NotRequired[dict[str, TextTokens]]


class EvalPart(NamedTuple):
    """Positions of the clips of an evaluation batch."""

    samples: Sequence[int]
    ahead: Indices
    """Those of later batches, whose shards may be fetched by then."""


@dataclass(frozen=True, kw_only=True)
class Samples(Generic[Content]):
    """The samples of a batch: those that could be read, in order, and those that could not.

    Args:
        source: name of the source.
        reader: of the source.
        clips: what was read.
        generators: of each clip, after what was drawn to read it.
        ids: identity of each clip.
        seeds: of each clip's generator.
        keys: of each clip.
        skipped: what could not be read.
    """

    source: str
    reader: ClipReader[Content]
    clips: list[Clip[Content]]
    generators: list[np.random.Generator]
    ids: list[int]
    seeds: list[int]
    keys: list[str]
    skipped: list[Skipped]

    @classmethod
    def read(
        cls, source: str, reader: ClipReader[Content], identities: Iterable[tuple[int, int, int]]
    ) -> "Samples[Content]":
        """Read samples, given by their position in the set, their identity and their seed."""
        samples = cls(source=source, reader=reader, clips=[], generators=[], ids=[], seeds=[], keys=[], skipped=[])
        for index, identity, seed in identities:
            generator, key = np.random.default_rng(seed), reader.shards.key(index)
            try:
                samples.clips.append(reader.read(index, generator))
            except SampleError as error:
                shard = reader.shards.names[reader.shards.shard_of(index)]
                samples.skipped.append(Skipped(source, key, error.reason, shard))
                continue
            samples.generators.append(generator)
            samples.ids.append(identity)
            samples.seeds.append(seed)
            samples.keys.append(key)
        return samples


class Batches(Dataset[Batch], Generic[Batch]):
    """Makes batches of the clips of some readers."""

    readers: list[ClipReader[Any]]

    def close(self) -> None:
        """End the decoder processes that the batches made in this very process have started."""
        for reader in self.readers:
            reader.close()


class TrainBatches(Batches[Batch], Generic[Content, Batch]):
    """Training batches by step.

    Args:
        readers: of the sources, by name.
        collate: makes a batch of the samples of a step.
        seed: with the epoch and the sample, the key of every random choice.
    """

    def __init__(
        self, readers: Mapping[str, ClipReader[Content]], collate: Callable[[Samples[Content]], Batch], *, seed: int
    ) -> None:
        self.names = list(readers)
        self.readers = list(readers.values())
        self.collate = collate
        self.seed = seed
        sizes = [len(reader.shards) for reader in self.readers]
        self._first_id = [sum(sizes[:source]) for source in range(len(sizes))]

    def __getitem__(self, step: Step) -> Batch:
        """Make the batch of one step, of this rank's samples."""
        reader, first = self.readers[step.source], self._first_id[step.source]
        reader.shards.prefetch(step.ahead)
        identities = (
            (index, first + index, derive_seed(self.seed, step.epoch, first + index)) for index in step.samples.tolist()
        )
        return self.collate(Samples.read(self.names[step.source], reader, identities))


class EvalBatches(Batches[Batch], Generic[Content, Batch]):
    """Evaluation batches by the positions of their clips.

    Args:
        reader: of the evaluation set.
        collate: makes a batch of the samples of a step.
        source: name of the set.
    """

    def __init__(
        self, reader: ClipReader[Content], collate: Callable[[Samples[Content]], Batch], *, source: str
    ) -> None:
        self.reader = reader
        self.readers = [reader]
        self.collate = collate
        self.source = source

    def __getitem__(self, part: EvalPart) -> Batch:
        """Make the batch of these clips."""
        self.reader.shards.prefetch(part.ahead)
        identities = ((index, index, derive_seed(index)) for index in part.samples)
        return self.collate(Samples.read(self.source, self.reader, identities))


def collate_clips(samples: Samples[int]) -> ClipBatch:
    """Make a batch of clips without text, with the numbers of their classes.

    Raises:
        InputError: for clips of unequal sizes.
    """
    return {
        "video": _videos(samples),
        "sample_id": _numbers(samples.ids),
        "seed": _numbers(samples.seeds),
        "label": _numbers([clip.content for clip in samples.clips]),
        "key": samples.keys,
        "source": samples.source,
        "skipped": samples.skipped,
    }


@dataclass(frozen=True, kw_only=True)
class MediaTextCollate:
    """Makes training batches of clips with one caption each.

    Args:
        tokenizer: captions to ids and validity.
        policies: for each source, whether one of a clip's captions is drawn (``random``) or the ``first`` taken.
        kinds: of each source, the kinds of captions that stand beside that one.
    """

    tokenizer: Tokenizer
    policies: Mapping[str, Literal["random", "first"]]
    kinds: Mapping[str, Sequence[str]]

    def __call__(self, samples: Samples[Captions]) -> MediaTextBatch:
        """Make a batch; the captions are drawn after all that was drawn to read the clip.

        Raises:
            InputError: for clips of unequal sizes.
        """
        policy, kinds = self.policies[samples.source], self.kinds[samples.source]
        chosen = [
            [choose_caption(text, policy, generator) for text in (clip.content.text, *clip.content.kinds.values())]
            for clip, generator in zip(samples.clips, samples.generators, strict=True)
        ]
        tokens = [_tokenized(self.tokenizer, [texts[place] for texts in chosen]) for place in range(1 + len(kinds))]
        by_kind: _Texts = {"texts": dict(zip(kinds, tokens[1:], strict=True))} if kinds else {}
        return {
            **_media(samples),
            "input_ids": tokens[0].input_ids,
            "valid": tokens[0].valid,
            **by_kind,
            "sample_id": _numbers(samples.ids),
            "seed": _numbers(samples.seeds),
            "key": samples.keys,
            "medium": samples.reader.medium,
            "source": samples.source,
            "skipped": samples.skipped,
        }


@dataclass(frozen=True, kw_only=True)
class RetrievalCollate:
    """Makes evaluation batches of clips with their captions.

    Args:
        tokenizer: captions to ids and validity.
        captions: ``all`` or only the ``first`` of each clip.
    """

    tokenizer: Tokenizer
    captions: Literal["all", "first"]

    def __call__(self, samples: Samples[Captions]) -> RetrievalBatch:
        """Make a batch.

        Raises:
            InputError: for clips of unequal sizes.
        """
        limit = None if self.captions == "all" else 1
        kept = [clip.content.text[:limit] for clip in samples.clips]
        tokens = _tokenized(self.tokenizer, [text for texts in kept for text in texts])
        return {
            **_media(samples),
            "index": _numbers(samples.ids),
            "input_ids": tokens.input_ids,
            "valid": tokens.valid,
            "clip_of_caption": _numbers([index for index, texts in zip(samples.ids, kept, strict=True) for _ in texts]),
            "caption": [caption for clip in samples.clips for caption in clip.content.annotated[:limit]],
            "key": samples.keys,
            "medium": samples.reader.medium,
            "source": samples.source,
            "skipped": samples.skipped,
        }


def _numbers(values: Sequence[int]) -> Int64[Tensor, "B"]:
    return torch.tensor(values, dtype=torch.int64)


def _tokenized(tokenizer: Tokenizer, texts: list[str]) -> TextTokens:
    """Ids and validity; of no rows, but of the right length, when there are no texts."""
    input_ids, valid = tokenizer(texts or [""])
    return TextTokens(input_ids[: len(texts)], valid[: len(texts)])


def _media(samples: Samples[Any]) -> _Media:
    media: _Media = {}
    if samples.reader.medium != "audio":
        media["video"] = _videos(samples)
    if samples.reader.has_sound:
        sounds = [clip.audio for clip in samples.clips if clip.audio is not None]
        media["audio"] = torch.stack(sounds) if sounds else torch.zeros(0, NUM_ROWS, NUM_MELS)
    return media


def _videos(samples: Samples[Any]) -> UInt8[Tensor, "B T C H W"]:
    videos = [clip.video for clip in samples.clips if clip.video is not None]
    if not videos:
        return samples.reader.empty
    sizes = sorted({tuple(video.shape) for video in videos})
    if len(sizes) > 1:
        raise InputError(f"clips of one batch have sizes {sizes[0]} and {sizes[-1]}: end the transforms with a Resize")
    return torch.stack(videos)

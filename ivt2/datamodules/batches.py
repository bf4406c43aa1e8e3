"""Makes batches of clips and captions: each is a function of its step or its place in an evaluation set alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import NotRequired, TypedDict

from ivt2.batch import MediaTextBatch, RetrievalBatch, Skipped, TextTokens
from ivt2.data.clips import Clip, ClipReader, choose_caption
from ivt2.data.ledger import SampleError
from ivt2.data.mixing import Step
from ivt2.data.order import Indices
from ivt2.data.shards import ShardSet
from ivt2.data.sound import NUM_MELS, NUM_ROWS
from ivt2.errors import InputError
from ivt2.ops.random import derive_seed

Tokenizer = Callable[[list[str]], tuple[Tensor, Tensor]]
Batch = TypeVar("Batch", MediaTextBatch, RetrievalBatch)


class _Media(TypedDict):
    """What both kinds of batches hold of their clips."""

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
class TrainSource:
    """A source of training clips.

    Args:
        reader: of its clips.
        captions: ``random`` draws one of a clip's captions, ``first`` takes the main one.
    """

    reader: ClipReader
    captions: Literal["random", "first"]


class Batches(Dataset[Batch], Generic[Batch]):
    """Makes batches of the clips of some readers."""

    readers: list[ClipReader]

    def close(self) -> None:
        """End the decoder processes that the batches made in this very process have started."""
        for reader in self.readers:
            reader.close()


class TrainBatches(Batches[MediaTextBatch]):
    """Training batches by step.

    Args:
        sources: by name.
        tokenizer: captions to ids and validity.
        seed: with the epoch and the sample, the key of every random choice.
    """

    def __init__(self, sources: Mapping[str, TrainSource], tokenizer: Tokenizer, *, seed: int) -> None:
        self.names = list(sources)
        self.sources = list(sources.values())
        self.readers = [source.reader for source in self.sources]
        self.tokenizer = tokenizer
        self.seed = seed
        sizes = [len(reader.shards) for reader in self.readers]
        self._first_id = [sum(sizes[:source]) for source in range(len(sizes))]

    def __getitem__(self, step: Step) -> MediaTextBatch:
        """Make the batch of one step, of this rank's samples."""
        reader, name = self.readers[step.source], self.names[step.source]
        policy = self.sources[step.source].captions
        reader.shards.prefetch(step.ahead)
        clips, texts, kept, keys, skipped = [], [], [], [], []
        for index in step.samples.tolist():
            sample_id = self._first_id[step.source] + index
            seed = derive_seed(self.seed, step.epoch, sample_id)
            generator = np.random.default_rng(seed)
            try:
                clip = reader.read(index, generator)
            except SampleError as error:
                skipped.append(_skipped(name, reader.shards, index, error.reason))
                continue
            clips.append(clip)
            texts.append([choose_caption(text, policy, generator) for text in (clip.text, *clip.kinds.values())])
            kept.append((sample_id, seed))
            keys.append(reader.shards.key(index))
        tokens = _tokenized(self.tokenizer, [chosen[0] for chosen in texts])
        identity = torch.tensor(kept, dtype=torch.int64).view(-1, 2)
        return {
            **_media(clips, reader),
            "input_ids": tokens.input_ids,
            "valid": tokens.valid,
            **self._texts(reader, texts),
            "sample_id": identity[:, 0].contiguous(),
            "seed": identity[:, 1].contiguous(),
            "key": keys,
            "medium": reader.medium,
            "source": name,
            "skipped": skipped,
        }

    def _texts(self, reader: ClipReader, texts: list[list[str]]) -> _Texts:
        """Of the texts of each clip, the main one first, those by kind."""
        kinds = reader.caption_kinds
        tokens = (_tokenized(self.tokenizer, [chosen[place] for chosen in texts]) for place in range(1, 1 + len(kinds)))
        return {"texts": dict(zip(kinds, tokens, strict=True))} if kinds else {}


class EvalBatches(Batches[RetrievalBatch]):
    """Evaluation batches by the positions of their clips.

    Args:
        reader: of the evaluation set.
        tokenizer: captions to ids and validity.
        source: name of the set.
        captions: ``all`` or only the ``first`` of each clip.
    """

    def __init__(
        self, reader: ClipReader, tokenizer: Tokenizer, *, source: str, captions: Literal["all", "first"]
    ) -> None:
        self.reader = reader
        self.readers = [reader]
        self.tokenizer = tokenizer
        self.source = source
        self.captions = captions

    def __getitem__(self, part: EvalPart) -> RetrievalBatch:
        """Make the batch of these clips."""
        shards, limit = self.reader.shards, None if self.captions == "all" else 1
        shards.prefetch(part.ahead)
        clips, kept, skipped = [], [], []
        for index in part.samples:
            try:
                clips.append(self.reader.read(index, np.random.default_rng(derive_seed(index))))
            except SampleError as error:
                skipped.append(_skipped(self.source, shards, index, error.reason))
            else:
                kept.append(index)
        tokens = _tokenized(self.tokenizer, [text for clip in clips for text in clip.text[:limit]])
        clip_of_caption = [index for index, clip in zip(kept, clips, strict=True) for _ in clip.text[:limit]]
        return {
            **_media(clips, self.reader),
            "index": torch.tensor(kept, dtype=torch.int64),
            "input_ids": tokens.input_ids,
            "valid": tokens.valid,
            "clip_of_caption": torch.tensor(clip_of_caption, dtype=torch.int64),
            "caption": [caption for clip in clips for caption in clip.captions[:limit]],
            "key": [shards.key(index) for index in kept],
            "medium": self.reader.medium,
            "source": self.source,
            "skipped": skipped,
        }


def _skipped(source: str, shards: ShardSet, index: int, reason: str) -> Skipped:
    return Skipped(source, shards.key(index), reason, shards.names[shards.shard_of(index)])


def _tokenized(tokenizer: Tokenizer, texts: list[str]) -> TextTokens:
    """Ids and validity; of no rows, but of the right length, when there are no texts."""
    input_ids, valid = tokenizer(texts or [""])
    return TextTokens(input_ids[: len(texts)], valid[: len(texts)])


def _media(clips: Sequence[Clip], reader: ClipReader) -> _Media:
    media: _Media = {}
    if reader.medium != "audio":
        media["video"] = _stacked([clip.video for clip in clips if clip.video is not None], reader)
    if reader.has_sound:
        sounds = [clip.audio for clip in clips if clip.audio is not None]
        media["audio"] = torch.stack(sounds) if sounds else torch.zeros(0, NUM_ROWS, NUM_MELS)
    return media


def _stacked(videos: Sequence[Tensor], reader: ClipReader) -> Tensor:
    if not videos:
        return reader.empty
    sizes = sorted({tuple(video.shape) for video in videos})
    if len(sizes) > 1:
        raise InputError(f"clips of one batch have sizes {sizes[0]} and {sizes[-1]}: end the transforms with a Resize")
    return torch.stack(list(videos))

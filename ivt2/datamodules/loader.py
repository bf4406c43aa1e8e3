"""Loaders of batches whose content depends on the step alone, not on ranks, workers or interruptions.

Whole batches are made in forked workers. What a loader hands out is entered in the ledger at that moment, in the main
process, together with its position: both are exact whenever a checkpoint is written.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ivt2.batch import RetrievalBatch, Skipped, MediaTextBatch
from ivt2.data.clips import Clip, ClipReader, choose_caption
from ivt2.data.ledger import Ledger, SampleError
from ivt2.data.mixing import Mixture, Step
from ivt2.data.order import rank_slice
from ivt2.data.shards import ShardSet
from ivt2.errors import InputError
from ivt2.ops.random import derive_seed

Tokenizer = Callable[[list[str]], tuple[Tensor, Tensor]]
_Batch = TypeVar("_Batch", MediaTextBatch, RetrievalBatch)


class LoaderState(TypedDict):
    """What a training loader needs to go on: one integer, and what it counts."""

    position: int
    """Steps handed out, over all epochs."""
    plan: str
    """Fingerprint of data, seed, batch size and mixture: the same position of another plan means other samples."""


class _Batches(Dataset[_Batch]):
    """Makes batches of the clips of some readers."""

    readers: list[ClipReader]

    def close(self) -> None:
        """End the decoder processes that the batches made in this very process have started."""
        for reader in self.readers:
            reader.close()


class TrainBatches(_Batches[MediaTextBatch]):
    """Training batches by step.

    Args:
        readers: of each source, by name.
        tokenizer: captions to ids and validity.
        seed: with the epoch and the sample, the key of every random choice.
        captions: ``random`` draws one of a clip's captions, ``first`` takes the main one.
    """

    def __init__(
        self,
        readers: Mapping[str, ClipReader],
        tokenizer: Tokenizer,
        *,
        seed: int,
        captions: Literal["random", "first"],
    ) -> None:
        self.names = list(readers)
        self.readers = list(readers.values())
        self.tokenizer = tokenizer
        self.seed = seed
        self.captions = captions
        sizes = [len(reader.shards) for reader in self.readers]
        self._first_id = [sum(sizes[:source]) for source in range(len(sizes))]

    def __getitem__(self, step: Step) -> MediaTextBatch:
        """Make the batch of one step, of this rank's samples."""
        reader, source = self.readers[step.source], self.names[step.source]
        reader.shards.prefetch(step.ahead)
        clips, texts, kept, keys, skipped = [], [], [], [], []
        for index in step.samples.tolist():
            sample_id = self._first_id[step.source] + index
            seed = derive_seed(self.seed, step.epoch, sample_id)
            generator = np.random.default_rng(seed)
            try:
                clip = reader.read(index, generator)
            except SampleError as error:
                skipped.append(_skipped(source, reader.shards, index, error.reason))
                continue
            clips.append(clip)
            texts.append(choose_caption(clip, self.captions, generator))
            kept.append((sample_id, seed))
            keys.append(reader.shards.key(index))
        input_ids, valid = _tokenized(self.tokenizer, texts)
        identity = torch.tensor(kept, dtype=torch.int64).view(-1, 2)
        return {
            "video": _stacked(clips, reader),
            "input_ids": input_ids,
            "valid": valid,
            "sample_id": identity[:, 0].contiguous(),
            "seed": identity[:, 1].contiguous(),
            "key": keys,
            "source": source,
            "skipped": skipped,
        }


class EvalBatches(_Batches[RetrievalBatch]):
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

    def __getitem__(self, indices: Sequence[int]) -> RetrievalBatch:
        """Make the batch of these clips."""
        shards, limit = self.reader.shards, None if self.captions == "all" else 1
        clips, kept, skipped = [], [], []
        for index in indices:
            try:
                clips.append(self.reader.read(index, np.random.default_rng(derive_seed(index))))
            except SampleError as error:
                skipped.append(_skipped(self.source, shards, index, error.reason))
            else:
                kept.append(index)
        input_ids, valid = _tokenized(self.tokenizer, [text for clip in clips for text in clip.text[:limit]])
        clip_of_caption = [index for index, clip in zip(kept, clips, strict=True) for _ in clip.text[:limit]]
        return {
            "video": _stacked(clips, self.reader),
            "index": torch.tensor(kept, dtype=torch.int64),
            "input_ids": input_ids,
            "valid": valid,
            "clip_of_caption": torch.tensor(clip_of_caption, dtype=torch.int64),
            "caption": [caption for clip in clips for caption in clip.captions[:limit]],
            "key": [shards.key(index) for index in kept],
            "source": self.source,
            "skipped": skipped,
        }


class _Loader(Generic[_Batch]):
    """Runs a dataset in workers and enters what it hands out in the ledger."""

    def __init__(self, dataset: _Batches[_Batch], *, num_workers: int, ledger: Ledger, pin_memory: bool) -> None:
        self.dataset: _Batches[_Batch] = dataset
        self.num_workers = num_workers
        self.ledger = ledger
        self.pin_memory = pin_memory

    def _batches(self, items: Iterable[Any]) -> Iterator[_Batch]:
        loader: DataLoader[_Batch] = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=items,
            num_workers=self.num_workers,
            multiprocessing_context="fork" if self.num_workers else None,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # a generator of its own leaves the global one as it is
        )
        message = None
        try:
            yield from loader
        except InputError as error:  # a worker's error arrives with the worker's trace in its message
            message = str(error).strip().rsplit("InputError: ", 1)[-1]
            error.__traceback__ = None  # it holds the iterator, whose end stops the workers
        finally:
            self.dataset.close()
        if message is not None:
            raise InputError(message)

    def _account(self, batch: _Batch) -> None:
        self.ledger.add_seen(len(batch["video"]) + len(batch["skipped"]))
        for skipped in batch["skipped"]:
            self.ledger.add(skipped)


class TrainLoader(_Loader[MediaTextBatch]):
    """Training batches of one rank, from wherever training stands to the end of the epoch.

    Args:
        dataset: makes the batches.
        plan: says what each step reads.
        fingerprint: of all that the plan depends on.
        rank: of this process among those that share each global batch.
        world: how many they are.
        num_workers: processes that make batches; 0 makes them in this one.
        ledger: of the skipped samples.
        steps_per_iteration: steps after which one iteration ends, when that is before the end of the epoch.
        repeat: begin anew with the very same batches in every iteration, to overfit them.
        pin_memory: for copies to a GPU.

    Raises:
        InputError: when the ranks cannot share the batch evenly.
    """

    def __init__(
        self,
        dataset: TrainBatches,
        plan: Mixture,
        *,
        fingerprint: str,
        rank: int,
        world: int,
        num_workers: int,
        ledger: Ledger,
        steps_per_iteration: int | None = None,
        repeat: bool = False,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(dataset, num_workers=num_workers, ledger=ledger, pin_memory=pin_memory)
        if plan.global_batch_size % world:
            raise InputError(
                f"global_batch_size={plan.global_batch_size}: cannot be shared by {world} processes; "
                f"make it a multiple of {world}"
            )
        self.plan = plan
        self.fingerprint = fingerprint
        self.rank = rank
        self.world = world
        self.steps_per_iteration = min(steps_per_iteration or plan.steps_per_epoch, plan.steps_per_epoch)
        self.repeat = repeat
        self.position = 0

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> Iterator[MediaTextBatch]:
        """Yield the batches up to the next multiple of ``steps_per_iteration``."""
        end = (self.position // self.steps_per_iteration + 1) * self.steps_per_iteration
        for batch in self._batches(map(self._step, range(self.position, end))):
            self.position += 1
            self._account(batch)
            yield batch

    def state_dict(self) -> LoaderState:
        """Return how many steps were handed out, and of which plan."""
        return {"position": self.position, "plan": self.fingerprint}

    def load_state_dict(self, state: LoaderState) -> None:
        """Go on after the steps that were handed out.

        Raises:
            InputError: when they were steps of another plan.
        """
        if state["plan"] != self.fingerprint:
            raise InputError(
                "the checkpoint was written with other training shards, batch size, seed or weights of the sources: "
                "restore these to resume, or start anew from its weights"
            )
        self.position = int(state["position"])

    def _step(self, position: int) -> Step:
        step = self.plan.step(position % self.steps_per_iteration if self.repeat else position)
        samples, ahead = (rank_slice(part, self.rank, self.world) for part in (step.samples, step.ahead))
        return step._replace(samples=samples, ahead=ahead)


class EvalLoader(_Loader[RetrievalBatch]):
    """All clips of an evaluation set, each once; every rank makes the same number of batches, the last may be empty.

    Args:
        dataset: makes the batches.
        batch_size: clips of a batch of one rank.
        rank: of this process.
        world: how many processes share the set.
        num_workers: processes that make batches; 0 makes them in this one.
        ledger: of the skipped samples.
        pin_memory: for copies to a GPU.
    """

    def __init__(
        self,
        dataset: EvalBatches,
        *,
        batch_size: int,
        rank: int,
        world: int,
        num_workers: int,
        ledger: Ledger,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(dataset, num_workers=num_workers, ledger=ledger, pin_memory=pin_memory)
        self.num_samples = len(dataset.reader.shards)
        self.global_batch_size = batch_size * world
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self.global_batch_size)

    def __iter__(self) -> Iterator[RetrievalBatch]:
        """Yield this rank's part of each global batch, in the order of the set."""
        for batch in self._batches(map(self._part, range(len(self)))):
            self._account(batch)
            yield batch

    def _part(self, number: int) -> range:
        begin = number * self.global_batch_size
        whole = range(begin, min(begin + self.global_batch_size, self.num_samples))
        return rank_slice(whole, self.rank, self.world)


def _skipped(source: str, shards: ShardSet, index: int, reason: str) -> Skipped:
    return Skipped(source, shards.key(index), reason, shards.names[shards.shard_of(index)])


def _tokenized(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and validity; of no rows, but of the right length, when there are no texts."""
    input_ids, valid = tokenizer(texts or [""])
    return input_ids[: len(texts)], valid[: len(texts)]


def _stacked(clips: Sequence[Clip], reader: ClipReader) -> Tensor:
    if not clips:
        return reader.empty
    sizes = sorted({tuple(clip.video.shape) for clip in clips})
    if len(sizes) > 1:
        raise InputError(f"clips of one batch have sizes {sizes[0]} and {sizes[-1]}: end the transforms with a Resize")
    return torch.stack([clip.video for clip in clips])

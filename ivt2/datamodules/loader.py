"""Loaders of batches whose content depends on the step alone, not on ranks, workers or interruptions.

Whole batches are made in forked workers. What a loader hands out is entered in the ledger at that moment, in the main
process, together with its position: both are exact whenever a checkpoint is written.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypedDict, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from ivt2.data.ledger import Ledger
from ivt2.data.mixing import BATCHES_AHEAD, Mixture, Step
from ivt2.data.order import rank_slice
from ivt2.datamodules.batches import Batch, Batches, EvalBatches, EvalPart
from ivt2.errors import InputError


class LoaderState(TypedDict):
    """What a training loader needs to go on: one integer, and what it counts."""

    position: int
    """Steps handed out, over all epochs."""
    plan: str
    """Fingerprint of data, seed, batch size and mixture: the same position of another plan means other samples."""


class _Loader(Generic[Batch]):
    """Runs a dataset in workers and enters what it hands out in the ledger."""

    def __init__(self, dataset: Batches[Batch], *, num_workers: int, ledger: Ledger, pin_memory: bool) -> None:
        self.dataset: Batches[Batch] = dataset
        self.num_workers = num_workers
        self.ledger = ledger
        self.pin_memory = pin_memory

    def _batches(self, items: Iterable[Any]) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
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

    def _account(self, batch: Batch) -> None:
        self.ledger.add_seen(len(batch["key"]) + len(batch["skipped"]))
        sounds = cast("Mapping[str, Any]", batch).get("audio")
        if sounds is not None:  # silence has other energies than the zeros of a missing sound
            self.ledger.padded_sounds += int((~sounds.flatten(1).any(dim=1)).sum())
        for skipped in batch["skipped"]:
            self.ledger.add(skipped)


class TrainLoader(_Loader[Batch], Generic[Batch]):
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
        dataset: Batches[Batch],
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
        for size in plan.batch_sizes:
            if size % world:
                raise InputError(
                    f"global_batch_size={size}: cannot be shared by {world} processes; make it a multiple of {world}"
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

    def __iter__(self) -> Iterator[Batch]:
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


class EvalLoader(_Loader[Batch], Generic[Batch]):
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
        dataset: EvalBatches[Any, Batch],
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

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's part of each global batch, in the order of the set."""
        for batch in self._batches(map(self._part, range(len(self)))):
            self._account(batch)
            yield batch

    def _part(self, number: int) -> EvalPart:
        # the first batch asks for all that the later ones do not ask for far enough ahead
        later = range(1, BATCHES_AHEAD + 1) if number == 0 else [number + BATCHES_AHEAD]
        ahead = [np.arange(part.start, part.stop) for part in map(self._samples, later)]
        return EvalPart(self._samples(number), np.concatenate(ahead))

    def _samples(self, number: int) -> range:
        begin = min(number * self.global_batch_size, self.num_samples)
        whole = range(begin, min(begin + self.global_batch_size, self.num_samples))
        return rank_slice(whole, self.rank, self.world)

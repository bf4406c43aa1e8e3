"""What each training step reads when there are several sources: one source for a step, the same on all ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ivt2.data.order import Indices, SampleOrder, permutation
from ivt2.errors import InputError

_SCHEDULE_STREAM = 0x6D6978
"""Keeps the shuffle of the schedule apart from the shuffles of the sources."""

BATCHES_AHEAD = 64
"""How early a shard is asked for: far ahead of what workers hold ready, and well within what a cache holds."""


class Step(NamedTuple):
    """The samples of one step, all of one source."""

    source: int
    epoch: int
    """How often the source was gone through before: part of the key of every random choice."""
    samples: Indices
    ahead: Indices
    """Those of a later batch of the source, in the same epoch, whose shards may be fetched by then."""


class Mixture:
    """The plan of training: step t, over all epochs, is a pure function of t.

    Without weights every source is gone through once an epoch, as many steps as it has full batches, in an order that
    is shuffled anew each epoch. With weights an epoch has as many steps, shared out by weight; a source begins anew
    when it is exhausted. The samples that do not fill a last batch are left out, other ones each time.

    Args:
        orders: one for each source.
        global_batch_size: clips of a step over all ranks; one number for each source, or one for all.
        seed: of the schedule.
        weights: share of the steps of each source, any positive scale; None takes each source once.

    Raises:
        InputError: when a source has less than a batch, or the weights do not fit the sources.

    Source: the reference's MetaLoader shuffles a list that holds each loader's number once for each of its batches.
    """

    def __init__(
        self,
        orders: Sequence[SampleOrder],
        *,
        global_batch_size: int | Sequence[int],
        seed: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.orders = list(orders)
        self.batch_sizes = (
            [global_batch_size] * len(orders) if isinstance(global_batch_size, int) else list(global_batch_size)
        )
        self.seed = seed
        sizes = [(order.num_samples, size) for order, size in zip(self.orders, self.batch_sizes, strict=True)]
        if too_small := [(num, size) for num, size in sizes if num < size]:
            num, size = min(too_small)
            raise InputError(
                f"global_batch_size={size}: a training set holds only {num} samples; set it to {num} or less"
            )
        self._full_batches = [num // size for num, size in sizes]
        self.steps_of_source = _share(self._full_batches, weights)
        self.steps_per_epoch = sum(self.steps_of_source)
        self._schedules: dict[int, tuple[NDArray[np.int64], Indices]] = {}

    def schedule(self, epoch: int) -> NDArray[np.int64]:
        """Return the source of each step of an epoch."""
        return self._schedule(epoch)[0]

    def step(self, position: int) -> Step:
        """Return what is read at a step.

        Args:
            position: steps before it, counted over all epochs.
        """
        epoch, step = divmod(position, self.steps_per_epoch)
        sources, turns = self._schedule(epoch)
        source = int(sources[step])
        turn = epoch * self.steps_of_source[source] + int(turns[step])
        source_epoch, batch = divmod(turn, self._full_batches[source])
        size = self.batch_sizes[source]
        begin = batch * size
        samples = self.orders[source].samples(source_epoch, begin, begin + size)
        later = begin + BATCHES_AHEAD * size
        ahead = self.orders[source].samples(source_epoch, later, later + size)
        return Step(source, source_epoch, samples, ahead)

    def _schedule(self, epoch: int) -> tuple[NDArray[np.int64], Indices]:
        """For each step its source, and how many steps of the epoch before it had the same source."""
        if epoch not in self._schedules and len(self.orders) == 1:
            self._schedules = {epoch: (np.zeros(self.steps_per_epoch, np.int64), np.arange(self.steps_per_epoch))}
        if epoch not in self._schedules:
            sources = np.repeat(np.arange(len(self.orders)), self.steps_of_source)
            sources = sources[permutation(self.steps_per_epoch, self.seed, epoch, _SCHEDULE_STREAM)]
            turns = np.empty_like(sources)
            for source, count in enumerate(self.steps_of_source):
                turns[sources == source] = np.arange(count)
            self._schedules = {epoch: (sources, turns)}
        return self._schedules[epoch]


def _share(full_batches: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """Steps of each source in an epoch; with weights by largest remainder, at least one each."""
    if weights is None:
        return list(full_batches)
    if len(weights) != len(full_batches) or min(weights) <= 0:
        raise InputError(f"weights={list(weights)}: give one positive number for each of {len(full_batches)} sources")
    shares = np.asarray(weights, np.float64) / sum(weights) * sum(full_batches)
    counts = np.floor(shares).astype(int)
    for source in np.argsort(counts - shares, kind="stable")[: sum(full_batches) - counts.sum()]:
        counts[source] += 1
    return [max(int(count), 1) for count in counts]

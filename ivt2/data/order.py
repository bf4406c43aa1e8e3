"""The order of samples: a pure function of (seed, epoch, position), whatever the number of ranks and workers.

Shards are dealt to a fixed number of canonical streams; each stream shuffles within a bounded buffer, and the order
takes one sample of each stream in turn. So a reader that holds only some streams, with a small buffer, can follow the
same order as one that reads by place. Random bits come straight from Philox, whose stream numpy promises never to
change, and not from ``Generator.permutation``, whose algorithm it may.
"""

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ivt2.ops.random import derive_seed

Indices: TypeAlias = NDArray[np.int64]
_Batch = TypeVar("_Batch", bound=Sequence[int] | Indices)

_PHILOX_WORDS = 4
"""Numbers that Philox makes of each value of its counter."""


class SampleOrder:
    """Shuffled order of all samples of a shard set, computed where it is asked for.

    One sample of each stream in turn is a round; ``shuffle_buffer`` rounds are a block, the unit that is computed and
    kept. So any place of an order of any length is found in the same short time, and nothing is replayed.

    Args:
        samples_per_shard: how many samples each shard holds; samples are numbered through all shards.
        seed: of the shuffle.
        num_streams: canonical streams K; it shapes the order and has to stay the same for a resume.
        shuffle_buffer: samples of a stream that are shuffled together.
    """

    def __init__(
        self, samples_per_shard: Sequence[int], *, seed: int, num_streams: int = 64, shuffle_buffer: int = 4096
    ) -> None:
        self.num_samples = int(np.sum(samples_per_shard, dtype=np.int64))
        self.seed = seed
        self.num_streams = num_streams
        self.shuffle_buffer = shuffle_buffer
        self._pieces = _cut(samples_per_shard, ceil(num_streams / max(len(samples_per_shard), 1)))
        self._epoch: _EpochOrder | None = None

    def epoch_order(self, epoch: int) -> Indices:
        """Return a permutation of all samples: every one exactly once."""
        return self.samples(epoch, 0, self.num_samples)

    def samples(self, epoch: int, begin: int, end: int) -> Indices:
        """Return a part of the order of an epoch.

        Args:
            epoch: from 0.
            begin: position of the first sample, in [0, num_samples].
            end: position after the last sample; what lies beyond the epoch is left out.

        Returns:
            ``epoch_order(epoch)[begin:end]``, at the cost of the blocks that hold it.
        """
        if self._epoch is None or self._epoch.epoch != epoch:
            self._epoch = _EpochOrder(
                self._pieces, epoch, seed=self.seed, num_streams=self.num_streams, shuffle_buffer=self.shuffle_buffer
            )
        return self._epoch.samples(begin, min(end, self.num_samples))


class _EpochOrder:
    """The pieces of an epoch dealt to streams, and the last blocks that were computed."""

    def __init__(self, pieces: Indices, epoch: int, *, seed: int, num_streams: int, shuffle_buffer: int) -> None:
        self.epoch = epoch
        self._seed = seed
        self._buffer = shuffle_buffer
        dealt = pieces[permutation(len(pieces), seed, epoch, 0)]
        self._streams = [dealt[stream::num_streams] for stream in range(min(num_streams, len(dealt)))]
        self._ends = [np.cumsum(stream[:, 1] - stream[:, 0]) for stream in self._streams]
        self._lengths = np.array([ends[-1] for ends in self._ends], np.int64)
        self._num_blocks = ceil(max(self._lengths.tolist(), default=0) / shuffle_buffer)
        self._held: dict[int, Indices] = {}

    def samples(self, begin: int, end: int) -> Indices:
        """The order from one position to another."""
        parts = [np.empty(0, np.int64)]
        while begin < end:
            block = bisect_right(range(self._num_blocks), begin, key=self._before) - 1
            start = begin - self._before(block)
            parts.append(self._block(block)[start : start + end - begin])
            begin += len(parts[-1])
        return np.concatenate(parts)

    def _before(self, block: int) -> int:
        """How many samples lie before a block; a stream that is exhausted is passed over."""
        return int(np.minimum(self._lengths, block * self._buffer).sum())

    def _block(self, block: int) -> Indices:
        if block not in self._held:
            first = block * self._buffer
            shuffled = [self._shuffled(stream, first) for stream in range(len(self._streams))]
            turns = np.concatenate([np.arange(len(samples)) for samples in shuffled])
            # two are kept, for a reader that looks ahead from one into the next
            self._held = dict([*self._held.items()][-1:])
            self._held[block] = np.concatenate(shuffled)[np.argsort(turns, kind="stable")]
        return self._held[block]

    def _shuffled(self, stream: int, first: int) -> Indices:
        """The samples of one buffer of a stream, shuffled; none when the stream has ended before."""
        places = np.arange(first, min(first + self._buffer, int(self._lengths[stream])))
        if len(places) == 0:
            return places
        places = places[np.argsort(_bits(len(places), self._seed, self.epoch, stream + 1, skip=first), kind="stable")]
        piece = np.searchsorted(self._ends[stream], places, side="right")
        samples: Indices = self._streams[stream][piece, 1] + places - self._ends[stream][piece]
        return samples


def permutation(num: int, *key: int) -> Indices:
    """Return a permutation of ``range(num)`` that depends on the key alone."""
    return np.argsort(_bits(num, *key), kind="stable")


def rank_slice(batch: _Batch, rank: int, world: int) -> _Batch:
    """Return the contiguous part of a global batch that one rank works on; sizes differ by one at most.

    Args:
        batch: the global batch.
        rank: of this process, from 0.
        world: how many processes share the batch.
    """
    begin, end = len(batch) * rank // world, len(batch) * (rank + 1) // world
    return batch[begin:end]  # type: ignore[return-value]


def _cut(samples_per_shard: Sequence[int], num_pieces: int) -> Indices:
    """Cut every shard into runs of samples, so that a few shards still fill all streams; empty runs are left out.

    Returns:
        First sample and end of each run, one row for each.
    """
    sizes = np.asarray(samples_per_shard, np.int64)[:, None]
    begins = np.cumsum(sizes)[:, None] - sizes
    number = np.arange(num_pieces)
    pieces = np.stack([begins + sizes * number // num_pieces, begins + sizes * (number + 1) // num_pieces], axis=-1)
    pieces = pieces.reshape(-1, 2)
    return pieces[pieces[:, 1] > pieces[:, 0]]


def _bits(num: int, *key: int, skip: int = 0) -> NDArray[np.uint64]:
    """Random bits of a key, those after the first ``skip``."""
    generator = np.random.Philox(key=derive_seed(*key))
    generator.advance(skip // _PHILOX_WORDS)
    bits: NDArray[np.uint64] = generator.random_raw(num + skip % _PHILOX_WORDS)
    return bits[skip % _PHILOX_WORDS :]

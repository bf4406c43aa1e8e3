"""The order of samples: a pure function of (seed, epoch), whatever the number of ranks and workers.

Shards are dealt to a fixed number of canonical streams; each stream shuffles within a bounded buffer, and the order
takes one sample of each stream in turn. So a reader that holds only some streams, with a small buffer, can follow the
same order as one that reads by place. Random bits come straight from Philox, whose stream numpy promises never to
change, and not from ``Generator.permutation``, whose algorithm it may.
"""

from collections.abc import Sequence
from math import ceil
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ivt2.ops.random import derive_seed

Indices: TypeAlias = NDArray[np.int64]
_Batch = TypeVar("_Batch", bound=Sequence[int] | Indices)


class SampleOrder:
    """Shuffled order of all samples of a shard set.

    Args:
        samples_per_shard: how many samples each shard holds; samples are numbered through all shards.
        seed: of the shuffle.
        num_streams: canonical streams K; it shapes the order and has to stay the same for a resume.
        shuffle_buffer: samples of a stream that are shuffled together.
    """

    def __init__(
        self, samples_per_shard: Sequence[int], *, seed: int, num_streams: int = 64, shuffle_buffer: int = 4096
    ) -> None:
        self.num_samples = sum(samples_per_shard)
        self.seed = seed
        self.num_streams = num_streams
        self.shuffle_buffer = shuffle_buffer
        self._pieces = _cut(samples_per_shard, ceil(num_streams / max(len(samples_per_shard), 1)))

    def epoch_order(self, epoch: int) -> Indices:
        """Return a permutation of all samples: every one exactly once."""
        dealt = permutation(len(self._pieces), self.seed, epoch, 0)
        streams = [dealt[stream :: self.num_streams] for stream in range(min(self.num_streams, len(dealt)))]
        shuffled = [self._shuffle(pieces, epoch, stream) for stream, pieces in enumerate(streams)]
        # one sample of each stream in turn; a stream that is exhausted is passed over
        turns = np.concatenate([np.arange(len(samples)) for samples in shuffled])
        order: Indices = np.concatenate(shuffled)[np.argsort(turns, kind="stable")]
        return order

    def _shuffle(self, pieces: Indices, epoch: int, stream: int) -> Indices:
        """The samples of one stream, shuffled within consecutive buffers."""
        samples = np.concatenate([np.arange(*self._pieces[piece]) for piece in pieces])
        buffer = np.arange(len(samples)) // self.shuffle_buffer
        return samples[np.lexsort((_bits(len(samples), self.seed, epoch, stream + 1), buffer))]


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


def _cut(samples_per_shard: Sequence[int], num_pieces: int) -> list[tuple[int, int]]:
    """Cut every shard into runs of samples, so that a few shards still fill all streams; empty runs are left out."""
    bounds = np.concatenate([[0], np.cumsum(samples_per_shard, dtype=np.int64)]).tolist()
    pieces = [
        (begin + size * piece // num_pieces, begin + size * (piece + 1) // num_pieces)
        for begin, size in zip(bounds, samples_per_shard, strict=False)
        for piece in range(num_pieces)
    ]
    return [(begin, end) for begin, end in pieces if end > begin]


def _bits(num: int, *key: int) -> NDArray[np.uint64]:
    bits: NDArray[np.uint64] = np.random.Philox(key=derive_seed(*key)).random_raw(num)
    return bits

"""Exact: orders are permutations, functions of seed and epoch alone, and mixed well even within one shard."""

import tracemalloc
from itertools import zip_longest

import numpy as np
import pytest

from ivt2.data.order import SampleOrder, permutation, rank_slice
from ivt2.ops.random import derive_seed

SHAPES = [[1], [5], [100], [1000], [64] * 3, [7, 0, 13, 1], [10] * 200, [3, 300], [1] * 65]


@pytest.mark.parametrize("samples_per_shard", SHAPES)
@pytest.mark.parametrize("options", [{}, {"num_streams": 1}, {"num_streams": 4, "shuffle_buffer": 8}])
def test_every_epoch_is_a_permutation(samples_per_shard, options):
    order = SampleOrder(samples_per_shard, seed=3, **options)
    for epoch in (0, 1, 7):
        assert sorted(order.epoch_order(epoch).tolist()) == list(range(sum(samples_per_shard)))


def slow_order(samples_per_shard, epoch, seed, num_streams, shuffle_buffer):
    """The definition, sample by sample."""
    cuts = -(-num_streams // len(samples_per_shard))
    pieces, first = [], 0
    for size in samples_per_shard:
        runs = [range(first + size * cut // cuts, first + size * (cut + 1) // cuts) for cut in range(cuts)]
        pieces += [run for run in runs if run]
        first += size
    pieces = [pieces[number] for number in permutation(len(pieces), seed, epoch, 0)]
    streams = []
    for number in range(min(num_streams, len(pieces))):
        samples = [sample for piece in pieces[number::num_streams] for sample in piece]
        bits = np.random.Philox(key=derive_seed(seed, epoch, number + 1)).random_raw(len(samples)).tolist()
        places = sorted(range(len(samples)), key=lambda place: (place // shuffle_buffer, bits[place]))
        streams.append([samples[place] for place in places])
    return [sample for turn in zip_longest(*streams) for sample in turn if sample is not None]


@pytest.mark.parametrize("samples_per_shard", SHAPES)
@pytest.mark.parametrize(("num_streams", "shuffle_buffer"), [(64, 4096), (1, 7), (4, 8), (7, 30)])
def test_any_part_is_found_without_the_rest(samples_per_shard, num_streams, shuffle_buffer):
    whole = slow_order(samples_per_shard, 5, 3, num_streams, shuffle_buffer)
    order = SampleOrder(samples_per_shard, seed=3, num_streams=num_streams, shuffle_buffer=shuffle_buffer)
    assert order.epoch_order(5).tolist() == whole
    for begin, length in np.random.default_rng(0).integers(0, len(whole) + 1, (9, 2)).tolist():
        assert order.samples(5, begin, begin + length).tolist() == whole[begin : begin + length]


def test_a_place_in_a_hundred_million_samples_takes_little_memory():
    order = SampleOrder([1000] * 100_000, seed=0)
    tracemalloc.start()
    samples = order.samples(0, 64_000_000, 64_000_064)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6
    assert len(set((samples // 1000).tolist())) == 64


def test_order_depends_on_seed_and_epoch_alone():
    shards = [50, 60, 70]
    order = SampleOrder(shards, seed=1)
    again = SampleOrder(shards, seed=1)
    again.epoch_order(4)
    assert np.array_equal(order.epoch_order(2), again.epoch_order(2))
    others = [order.epoch_order(3), SampleOrder(shards, seed=2).epoch_order(2)]
    assert all((other == order.epoch_order(2)).mean() < 0.1 for other in others)


def test_the_order_never_changes():
    """Recorded once: a changed shuffle would break the resume of every earlier run."""
    assert SampleOrder([4, 3], seed=0, num_streams=2).epoch_order(0).tolist() == [2, 5, 3, 4, 0, 6, 1]


@pytest.mark.parametrize("samples_per_shard", [[640], [1] * 640, [64] * 10])
def test_neighbours_are_parted(samples_per_shard):
    """The mean distance of two places of a random permutation is a third of its length."""
    order = SampleOrder(samples_per_shard, seed=0)
    place = np.argsort(np.stack([order.epoch_order(epoch) for epoch in range(20)]), axis=1)
    assert np.abs(np.diff(place, axis=1)).mean() > 640 / 3 * 0.85
    assert abs(place.mean(axis=0) - 319.5).max() < 5 * 640 / np.sqrt(12 * 20)


def test_a_stream_needs_no_more_than_its_buffer():
    """Within a stream a sample never moves further than the buffer; that is what lets a reader stream shards."""
    order = SampleOrder([40] * 6, seed=5, num_streams=2, shuffle_buffer=10)
    streams = [order.epoch_order(0)[stream::2] for stream in range(2)]
    for stream in streams:
        shard_of = stream // 40
        assert all(set(shard_of[40 * part : 40 * part + 40].tolist()) == {shard_of[40 * part]} for part in range(3))
        assert any((np.diff(stream) != 1).tolist())
        for begin in range(0, 120, 10):
            assert np.ptp(stream[begin : begin + 10]) == 9


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [0, 5, 12])
def test_ranks_share_a_batch_without_gap_or_overlap(world, size):
    parts = [rank_slice(np.arange(size), rank, world) for rank in range(world)]
    assert np.concatenate(parts).tolist() == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_permutations_of_other_keys_differ():
    assert sorted(permutation(100, 1, 2).tolist()) == list(range(100))
    assert permutation(100, 1, 2).tolist() != permutation(100, 2, 1).tolist()

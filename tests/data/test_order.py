"""Exact: orders are permutations, functions of seed and epoch alone, and mixed well even within one shard."""

import numpy as np
import pytest

from ivt2.data.order import SampleOrder, permutation, rank_slice

SHAPES = [[1], [5], [100], [1000], [64] * 3, [7, 0, 13, 1], [10] * 200, [3, 300], [1] * 65]


@pytest.mark.parametrize("samples_per_shard", SHAPES)
@pytest.mark.parametrize("options", [{}, {"num_streams": 1}, {"num_streams": 4, "shuffle_buffer": 8}])
def test_every_epoch_is_a_permutation(samples_per_shard, options):
    order = SampleOrder(samples_per_shard, seed=3, **options)
    for epoch in (0, 1, 7):
        assert sorted(order.epoch_order(epoch).tolist()) == list(range(sum(samples_per_shard)))


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

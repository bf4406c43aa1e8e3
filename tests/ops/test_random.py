"""Stateless draws: pinned values, uniformity, independence."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from ivt2.ops.random import Stream, derive_seed, normal, uniform

MASK = 2**64 - 1
PINNED_UNIFORM = [[11599047, 6734117], [1789111, 8200400], [1275406, 5113519]]
PINNED_SEEDS = [0, 8147104208329303767, 6837799079370971490, 776705676165390138]


def splitmix(value):
    """Published finaliser, on numpy's unsigned numbers."""
    with np.errstate(over="ignore"):
        value = np.uint64(value)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return int(value ^ (value >> np.uint64(31)))


def slow_uniform(seed, num, stream):
    key = splitmix((seed & MASK) ^ splitmix(stream + 1))
    return [(splitmix((key + (i + 1) * 0x9E3779B97F4A7C15) & MASK) >> 40) / 2**24 for i in range(num)]


def test_finaliser_is_that_of_splitmix64():
    """First outputs of the generator with seed 0, as published with it."""
    states = [(i * 0x9E3779B97F4A7C15) & MASK for i in (1, 2, 3)]
    assert [splitmix(state) for state in states] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("stream", [0, 1, 7])
def test_equals_the_slow_version_on_unsigned_numbers(stream):
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    expected = torch.tensor([slow_uniform(seed, 9, stream) for seed in seeds])
    assert torch.equal(uniform(torch.tensor(seeds), 9, stream), expected)


def test_values_are_pinned():
    """A change here changes every mask and every negative of a resumed run."""
    drawn = (uniform(torch.tensor([0, 1, -5]), 2, 3) * 2**24).to(torch.int64)
    assert drawn.tolist() == PINNED_UNIFORM
    assert [derive_seed(), derive_seed(0), derive_seed(1, 2, 3), derive_seed(-1)] == PINNED_SEEDS


def test_uniform():
    draws = uniform(torch.arange(500), 400, 0)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws.flatten(), bins=100, min=0, max=1)
    expected = draws.numel() / 100
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 50 < chi_square < 160  # 99 degrees of freedom: mean 99, standard deviation 14
    assert draws.double().mean().item() == pytest.approx(0.5, abs=0.003)
    assert draws.double().var().item() == pytest.approx(1 / 12, abs=0.001)


def test_normal():
    draws = normal(torch.arange(300), 301, 0).double()
    assert draws.shape == (300, 301)
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert (draws**power).mean().item() == pytest.approx(expected, abs=0.05)
    assert (draws.abs() < 1).double().mean().item() == pytest.approx(math.erf(0.5**0.5), abs=0.005)
    assert correlation(draws[:, :-1], draws[:, 1:]) < 4.5 / draws.numel() ** 0.5
    assert torch.equal(normal(torch.arange(5), 7, 0), normal(torch.arange(5), 40, 0)[:, :7])
    assert normal(torch.arange(0), 3, 0).shape == (0, 3)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1].abs().item()


def test_streams_samples_and_positions_are_uncorrelated():
    seeds = torch.arange(500)
    draws = uniform(seeds, 200, 0)
    limit = 4.5 / draws.numel() ** 0.5
    for stream in (1, 2, 3):
        assert correlation(draws, uniform(seeds, 200, stream)) < limit
    assert correlation(draws[:-1], draws[1:]) < limit * 1.1
    assert correlation(draws[:, :-1], draws[:, 1:]) < limit * 1.1
    assert correlation(draws, uniform(seeds + 2**40, 200, 0)) < limit


def test_a_draw_depends_on_its_sample_alone():
    seeds = torch.tensor([5, 6, 7, 8])
    draws = uniform(seeds, 10, 2)
    assert torch.equal(uniform(seeds[2:], 10, 2), draws[2:])
    assert torch.equal(uniform(seeds.flip(0), 4, 2), draws.flip(0)[:, :4])
    assert uniform(seeds[:0], 3, 0).shape == (0, 3)


def test_derived_seeds_fit_int64_and_tell_parts_apart():
    keys = [derive_seed(seed, epoch, sample) for seed in range(3) for epoch in range(3) for sample in range(1000)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)
    assert len({derive_seed(1, 2), derive_seed(2, 1), derive_seed(1, 2, 0), derive_seed(1), derive_seed(0, 1, 2)}) == 5
    ones = sum(key.bit_count() for key in keys) / len(keys)
    assert ones == pytest.approx(31.5, abs=0.3)


def test_purposes_keep_their_numbers_and_their_draws_apart():
    assert [int(stream) for stream in Stream] == [1, 2, 3, 4, 5, 1701994867, 1835628661]
    draws = [uniform(torch.tensor([7]), 3, stream) for stream in Stream]
    assert not any(torch.equal(first, second) for first, second in combinations(draws, 2))

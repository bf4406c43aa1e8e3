"""Exact: what a step reads is a function of its number; sources are used up evenly or by weight."""

from collections import Counter

import numpy as np
import pytest

from ivt2.data.mixing import Mixture
from ivt2.data.order import SampleOrder
from ivt2.errors import InputError


def mixture(*sizes, batch=4, **options):
    orders = [SampleOrder([size], seed=number) for number, size in enumerate(sizes)]
    return Mixture(orders, global_batch_size=batch, seed=9, **options)


def test_each_source_is_gone_through_once_an_epoch_and_leaves_out_other_samples_each_time():
    plan = mixture(22, 9)
    assert plan.steps_per_epoch == 5 + 2
    left_out = []
    for epoch in range(4):
        steps = [plan.step(7 * epoch + step) for step in range(7)]
        assert Counter(step.source for step in steps) == {0: 5, 1: 2}
        assert {step.epoch for step in steps} == {epoch}
        read = [index for step in steps if step.source == 0 for index in step.samples.tolist()]
        assert len(set(read)) == 20
        left_out.append(tuple(sorted(set(range(22)) - set(read))))
    assert len(set(left_out)) > 1


def test_a_step_is_a_function_of_its_number():
    plan, other = mixture(40, 24, 16), mixture(40, 24, 16)
    positions = list(range(60))
    forward = {position: plan.step(position) for position in positions}
    for position in np.random.default_rng(0).permutation(positions).tolist():
        step = other.step(position)
        assert (step.source, step.epoch) == forward[position][:2]
        assert step.samples.tolist() == forward[position].samples.tolist()


def test_the_schedule_is_shuffled_anew_each_epoch():
    plan = mixture(80, 80)
    schedules = [plan.schedule(epoch).tolist() for epoch in range(3)]
    assert len(set(map(tuple, schedules))) == 3
    assert all(sorted(schedule) == [0] * 20 + [1] * 20 for schedule in schedules)
    assert 8 < sum(a != b for a, b in zip(schedules[0], schedules[0][1:], strict=False)) < 32


def test_weights_share_the_steps_and_small_sources_begin_anew():
    plan = mixture(40, 8, weights=[1, 1])
    assert plan.steps_of_source == [6, 6]
    steps = [plan.step(position) for position in range(24)]
    small = [step for step in steps if step.source == 1]
    assert [step.epoch for step in small] == [number // 2 for number in range(12)]
    for first, second in zip(small[::2], small[1::2], strict=True):
        assert sorted([*first.samples.tolist(), *second.samples.tolist()]) == list(range(8))
    large = [index for step in steps if step.source == 0 and step.epoch == 0 for index in step.samples.tolist()]
    assert sorted(large) == list(range(40))


def test_a_step_looks_ahead_within_its_epoch():
    plan = mixture(400, batch=4)
    steps = [plan.step(position) for position in range(200)]
    for number, step in enumerate(steps):
        later = steps[number + 64].samples.tolist() if number % 100 < 36 else []
        assert step.ahead.tolist() == later


def test_shares_add_up_and_none_is_lost():
    assert mixture(40, 40, 40, weights=[1, 1, 1.0]).steps_of_source == [10, 10, 10]
    assert sum(mixture(44, 40, 40, weights=[5, 3, 2.5]).steps_of_source) == 31
    assert mixture(40, 40, weights=[1000, 1]).steps_of_source == [20, 1]


def test_each_source_may_have_a_batch_size_of_its_own():
    plan = mixture(48, 30, batch=[4, 10])
    assert plan.steps_of_source == [12, 3]
    for epoch in range(2):
        read = {0: [], 1: []}
        for step in (plan.step(15 * epoch + number) for number in range(15)):
            assert len(step.samples) == [4, 10][step.source]
            read[step.source] += step.samples.tolist()
        assert [sorted(read[source]) for source in (0, 1)] == [list(range(48)), list(range(30))]
    one, other = mixture(48, 30, batch=[5, 5]), mixture(48, 30, batch=5)
    for position in range(30):
        assert one.step(position).samples.tolist() == other.step(position).samples.tolist()
    far = mixture(400, 2000, batch=[2, 20])
    first = {source: next(far.step(n) for n in range(300) if far.step(n).source == source) for source in (0, 1)}
    for source, size in enumerate((2, 20)):
        assert first[source].ahead.tolist() == far.orders[source].samples(0, 64 * size, 65 * size).tolist()


def test_sources_smaller_than_a_batch_and_wrong_weights_are_refused():
    with pytest.raises(InputError, match="holds only 3 samples; set it to 3 or less"):
        mixture(12, 3)
    with pytest.raises(InputError, match="global_batch_size=8: a training set holds only 6 samples; set it to 6"):
        mixture(12, 7, 6, batch=[4, 8, 8])
    for weights in ([1], [1, 0], [1, -1]):
        with pytest.raises(InputError, match="weights"):
            mixture(12, 8, weights=weights)

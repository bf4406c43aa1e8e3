import json
from functools import partial

import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from ivt2.optim.schedules import WarmupCosine, warmup_cosine


def optimizer(*rates):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.01),
        (1, 0.01),
        (2, 0.02),
        (50, 0.5),
        (99, 0.99),
        (100, 1.0),
        (325, 0.853553),
        (550, 0.5),
        (775, 0.146447),
        (990, 0.01),
        (1000, 0.01),
    ],
)
def test_published_factors(step, factor):
    schedule = WarmupCosine(warmup_steps=100, total_steps=1000, min_ratio=0.01)
    assert schedule(step) == pytest.approx(factor, abs=1e-6)


def test_without_warmup_starts_at_the_peak():
    schedule = WarmupCosine(warmup_steps=0, total_steps=10, min_ratio=0.0)
    assert schedule(0) == 1.0
    assert schedule(5) == pytest.approx(0.5)
    assert schedule(10) == pytest.approx(0.0)


def test_beyond_the_end():
    hold = WarmupCosine(warmup_steps=0, total_steps=10, min_ratio=0.1)
    rebound = WarmupCosine(warmup_steps=0, total_steps=10, min_ratio=0.1, after_end="rebound")
    assert [hold(step) for step in (10, 15, 20)] == [0.1, 0.1, 0.1]
    assert [rebound(step) for step in (10, 15, 20)] == pytest.approx([0.1, 0.5, 1.0])
    assert all(hold(step) == rebound(step) for step in range(11))


def test_warmup_of_the_whole_training_does_not_divide_by_zero():
    schedule = WarmupCosine(warmup_steps=4, total_steps=4, min_ratio=0.01)
    assert [schedule(step) for step in range(6)] == [0.01, 0.25, 0.5, 0.75, 1.0, 0.01]


def test_every_group_follows_from_its_own_rate():
    groups = optimizer(1.0, 0.2)
    schedule = warmup_cosine(groups, total_steps=8, warmup_steps=4, min_ratio=0.0)
    rates = []
    for _ in range(9):
        rates.append(schedule.get_last_lr())
        groups.step()
        schedule.step()
    expected = [WarmupCosine(4, 8, 0.0)(step) for step in range(9)]
    assert [rate[0] for rate in rates] == pytest.approx(expected)
    assert [rate[1] for rate in rates] == pytest.approx([0.2 * factor for factor in expected])


def test_a_partial_waits_for_the_optimizer_and_the_length():
    configured = partial(warmup_cosine, warmup_ratio=0.1, min_ratio=0.05)
    schedule = configured(optimizer(1.0), total_steps=1000)
    assert schedule.lr_lambdas == [WarmupCosine(warmup_steps=100, total_steps=1000, min_ratio=0.05)]


def test_state_is_plain_and_restores():
    groups = optimizer(1.0)
    schedule = warmup_cosine(groups, total_steps=20, warmup_steps=5)
    for _ in range(7):
        groups.step()
        schedule.step()
    state = json.loads(json.dumps(schedule.state_dict()))
    assert state["lr_lambdas"] == [{"warmup_steps": 5, "total_steps": 20, "min_ratio": 0.01, "after_end": "hold"}]
    again = warmup_cosine(optimizer(1.0), total_steps=20, warmup_steps=5)
    again.load_state_dict(state)
    assert again.get_last_lr() == schedule.get_last_lr()
    groups.step()
    schedule.step()
    again.optimizer.step()
    again.step()
    assert again.get_last_lr() == schedule.get_last_lr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "both set"),
        ({"warmup_steps": 21}, "warmup_steps=21 is outside"),
        ({"warmup_steps": -1}, "warmup_steps=-1 is outside"),
        ({"warmup_ratio": 1.5}, "warmup_ratio=1.5"),
        ({"min_ratio": -0.1}, "min_ratio=-0.1"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(InputError, match=message):
        warmup_cosine(optimizer(1.0), total_steps=20, **options)

import json
import math
from functools import partial

import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from ivt2.optim.schedules import (
    InclusiveWarmupCosine,
    WarmupCosine,
    inclusive_warmup_cosine,
    scaled_learning_rate,
    warmup_cosine,
)


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


def slow_schedule(start, peak, final, warmup, total):
    """The reference's rule as a list: numpy's linspace, then the cosine."""
    import numpy as np

    rest = total - warmup
    cosine = [final + 0.5 * (peak - final) * (1 + math.cos(math.pi * i / rest)) for i in range(rest)]
    return np.linspace(start, peak, warmup).tolist() + cosine


@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 20])
def test_inclusive_rule_is_linspace_then_cosine(warmup):
    rule = InclusiveWarmupCosine(warmup, 20, start_ratio=0.1, final_ratio=0.25)
    assert [rule(step) for step in range(20)] == pytest.approx(slow_schedule(0.1, 1.0, 0.25, warmup, 20), rel=1e-12)
    if warmup > 1:
        assert rule(warmup - 1) == rule(warmup) or warmup == 20
    assert [rule(step) for step in (21, 40)] == pytest.approx([0.25] * 2)


def test_published_schedule_of_the_1b_model():
    """301 epochs of 268 steps with 4096 clips; the peak of 2.4e-3 comes with step 10,719."""
    groups = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.5e-4)
    schedule = inclusive_warmup_cosine(
        groups, total_steps=80_668, warmup_steps=10_720, final_lr=1e-5, global_batch_size=4096
    )
    rule = schedule.lr_lambdas[0]
    peak = groups.param_groups[0]["initial_lr"]
    assert peak == pytest.approx(2.4e-3)
    assert (rule(0), rule(10_718) < 1, rule(10_719), rule(10_720)) == (0.0, True, 1.0, 1.0)
    assert peak * rule(80_668) == pytest.approx(1.6e-4)


def test_absolute_rates_belong_to_the_optimizers_rate():
    groups = torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.2)], lr=1.0)
    schedule = inclusive_warmup_cosine(groups, total_steps=4, warmup_steps=2, start_lr=0.1, final_lr=0.5)
    rates = []
    for _ in range(5):
        rates.append(schedule.get_last_lr())
        groups.step()
        schedule.step()
    expected = [*slow_schedule(0.1, 1.0, 0.5, 2, 4), 0.5]
    assert [rate[0] for rate in rates] == pytest.approx(expected)
    assert [rate[1] for rate in rates] == pytest.approx([0.2 * rate for rate in expected])


def test_rates_grow_with_the_batch():
    assert scaled_learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)
    assert scaled_learning_rate(1.5e-4, 256) == 1.5e-4
    with pytest.raises(InputError, match="global_batch_size=0"):
        scaled_learning_rate(1.0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "both set"),
        ({"warmup_steps": 21}, "warmup_steps=21 is outside"),
        ({"start_lr": -1.0}, "start_lr=-1.0"),
        ({"final_lr": math.nan}, "final_lr=nan"),
        ({"global_batch_size": -8}, "global_batch_size=-8"),
    ],
)
def test_bad_input_of_the_inclusive_rule_is_named(options, message):
    with pytest.raises(InputError, match=message):
        inclusive_warmup_cosine(optimizer(1.0), total_steps=20, **options)


def test_a_rate_of_zero_is_named():
    groups = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    with pytest.raises(InputError, match=r"optimizer\.lr=0\.0"):
        inclusive_warmup_cosine(groups, total_steps=20)

import math

import pytest
import torch

from ivt2.losses.contrastive import contrastive_loss, contrastive_targets


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def slow_loss(visual, text, temperature, ids):
    """Both directions, one logarithm at a time."""
    unit = [torch.nn.functional.normalize(x.double(), dim=1) for x in (visual, text)]
    total, num = 0.0, len(ids)
    for queries, keys in (unit, unit[::-1]):
        for i in range(num):
            scores = [math.exp(float(queries[i] @ key) / temperature) for key in keys]
            positives = [j for j in range(num) if ids[j] == ids[i]]
            total -= sum(math.log(scores[j] / sum(scores)) for j in positives) / len(positives)
    return total / (2 * num)


def test_targets_share_a_row_among_equal_ids():
    expected = [[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]]
    assert contrastive_targets(torch.tensor([3, 7, 3, 9]), 4).tolist() == expected


def test_without_ids_each_row_is_its_own():
    assert torch.equal(contrastive_targets(None, 3), torch.eye(3))


def test_features_that_say_nothing_cost_log_of_the_batch():
    loss = contrastive_loss(torch.ones(6, 4), torch.ones(6, 4), 0.07)
    assert loss.item() == pytest.approx(math.log(6), rel=1e-6)


def test_perfect_features_cost_nothing():
    assert contrastive_loss(torch.eye(5), torch.eye(5), 0.01).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [0, 1, 0, 0, 1], [5, 5, 5, 5, 5]])
def test_against_a_loop(ids):
    visual, text = torch.randn(5, 3), torch.randn(5, 3)
    loss = contrastive_loss(visual, text, 0.2, torch.tensor(ids))
    assert loss.item() == pytest.approx(slow_loss(visual, text, 0.2, ids), rel=1e-5)


def test_ids_that_all_differ_are_as_none():
    visual, text = torch.randn(5, 3), torch.randn(5, 3)
    assert contrastive_loss(visual, text, 0.1, torch.arange(5)) == contrastive_loss(visual, text, 0.1)


def test_modalities_may_change_places():
    visual, text, ids = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([1, 2, 1, 3, 4])
    torch.testing.assert_close(contrastive_loss(visual, text, 0.1, ids), contrastive_loss(text, visual, 0.1, ids))


def test_length_of_features_has_no_effect():
    visual, text = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(contrastive_loss(visual * 7, text / 3, 0.1), contrastive_loss(visual, text, 0.1))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_learned_temperature_gets_a_gradient_and_the_loss_is_scalar(shape):
    temperature = torch.full(shape, 0.3, dtype=torch.float64, requires_grad=True)
    visual, text = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    loss = contrastive_loss(visual, text, temperature)
    loss.backward()
    step = 1e-3
    slope = (contrastive_loss(visual, text, 0.3 + step) - contrastive_loss(visual, text, 0.3 - step)) / (2 * step)
    assert loss.shape == ()
    assert temperature.grad.item() == pytest.approx(slope.item(), rel=1e-3)


def test_half_precision_features_are_compared_in_single_precision():
    visual, text = torch.randn(4, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(visual, text, 0.01)
    torch.testing.assert_close(loss, contrastive_loss(visual.float(), text.float(), 0.01))


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_to_contrast_is_a_zero_with_a_graph(num):
    visual, text = torch.randn(num, 3, requires_grad=True), torch.randn(num, 3, requires_grad=True)
    ids = torch.zeros(num, dtype=torch.int64)
    loss = contrastive_loss(visual, text, 0.07, ids)
    loss.backward()
    assert loss.item() == 0
    assert visual.grad.isfinite().all()

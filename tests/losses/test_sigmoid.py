import math

import pytest
import torch

from ivt2.losses.sigmoid import sigmoid_loss
from ivt2.ops.similarity import cosine_similarity


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def naive_sigmoid_loss(visual, text, temperature, bias, ids):
    """All pairs at once."""
    logits = cosine_similarity(visual, text) / temperature + bias
    same = (ids[:, None] == ids[None, :]).to(logits.dtype)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, same, reduction="sum") / len(ids)


def slow_loss(visual, text, temperature, bias, ids):
    """One pair at a time."""
    unit = [torch.nn.functional.normalize(x.double(), dim=1) for x in (visual, text)]
    total = 0.0
    for i, clip in enumerate(unit[0]):
        for j, caption in enumerate(unit[1]):
            sign = 1 if ids[i] == ids[j] else -1
            total += math.log1p(math.exp(-sign * (float(clip @ caption) / temperature + bias)))
    return total / len(ids)


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [0, 1, 0, 0, 1], [5] * 5])
@pytest.mark.parametrize("chunk", [None, 2])
def test_against_a_loop(ids, chunk):
    visual, text = torch.randn(5, 3), torch.randn(5, 3)
    loss = sigmoid_loss(visual, text, 0.2, -1.5, torch.tensor(ids), chunk=chunk)
    assert loss.item() == pytest.approx(slow_loss(visual, text, 0.2, -1.5, ids), rel=1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 0, 1, 8, 9], [5] * 7])
def test_gradients_are_those_of_the_full_matrix(ids, chunk):
    grads = []
    for form in (lambda *given: sigmoid_loss(*given, chunk=chunk), naive_sigmoid_loss):
        torch.manual_seed(1)
        leaves = torch.randn(7, 5), torch.randn(7, 5), torch.full((1,), 0.2), torch.full((), -2.0)
        loss = form(*(x.requires_grad_() for x in leaves), torch.tensor(ids))
        loss.backward()
        grads.append([loss.detach(), *(x.grad for x in leaves)])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=2e-6)


def test_without_ids_each_row_is_its_own():
    visual, text = torch.randn(5, 3), torch.randn(5, 3)
    assert sigmoid_loss(visual, text, 0.1, -10.0) == sigmoid_loss(visual, text, 0.1, -10.0, torch.arange(5))


def test_a_pair_that_is_right_costs_next_to_nothing_and_still_says_how_much():
    visual = torch.ones(1, 3, requires_grad=True)
    bias = torch.tensor(10.0, requires_grad=True)
    loss = sigmoid_loss(visual, torch.ones(1, 3), 0.05, bias)
    loss.backward()
    assert bias.grad.item() == pytest.approx(-math.exp(-30), rel=1e-4)


@pytest.mark.parametrize("num", [0, 1])
def test_few_or_no_pairs(num):
    visual, bias = torch.randn(num, 3, requires_grad=True), torch.zeros(1, requires_grad=True)
    loss = sigmoid_loss(visual, visual.detach(), 1.0, bias, chunk=4)
    loss.backward()
    assert loss.item() == pytest.approx(num * math.log1p(math.exp(-1)))
    assert bias.grad.item() == pytest.approx(-num / (1 + math.e))

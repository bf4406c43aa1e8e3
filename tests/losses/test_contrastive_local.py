"""Oracle: the loss that sees the whole matrix. Both forms, contrastive and sigmoid, run in one launch of ranks."""

from pathlib import Path

import pytest
import torch

from ivt2.losses.contrastive import contrastive_loss
from ivt2.losses.contrastive_local import local_contrastive_loss
from tests.losses.contrastive_ranks import CASES, IDS, SIZES, leaves
from tests.losses.test_sigmoid import naive_sigmoid_loss
from tests.ops.launch import run_ranks

ids_cases = pytest.mark.parametrize("ids", [None, [0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 0, 1, 8, 9], [5] * 7])
chunks = pytest.mark.parametrize("chunk", [None, 1, 3, 7, 100])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of four ranks found, together and in pairs."""
    return run_ranks(Path(__file__).with_name("contrastive_ranks.py"), tmp_path_factory.mktemp("ranks"), world=4)


def features(num, dtype=torch.float32):
    """Features of both modalities and a temperature, as leaves."""
    torch.manual_seed(0)
    return [x.to(dtype).requires_grad_() for x in (torch.randn(num, 5) * 3, torch.randn(num, 5), torch.full((1,), 0.2))]


def assert_equal_with_gradients(ours, expected, ours_leaves, expected_leaves, **tolerance):
    ours.backward()
    expected.backward()
    torch.testing.assert_close(ours, expected, **tolerance)
    for mine, theirs in zip(ours_leaves, expected_leaves, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **tolerance)


@ids_cases
@chunks
def test_one_process_is_the_full_matrix(ids, chunk):
    ours, naive = features(7), features(7)
    ids = None if ids is None else torch.tensor(ids)
    loss = local_contrastive_loss(*ours, ids, chunk=chunk)
    assert_equal_with_gradients(loss, contrastive_loss(*naive, ids), ours, naive, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_to_contrast_is_a_zero_with_a_graph(num):
    visual, text, temperature = features(num)
    loss = local_contrastive_loss(visual, text, temperature, torch.zeros(num, dtype=torch.int64), chunk=2)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(visual.grad, torch.zeros(num, 5))
    assert temperature.grad.item() == 0


def test_features_in_parts():
    visual, text = torch.randn(4, 3, 5), torch.randn(4, 5)
    torch.testing.assert_close(
        local_contrastive_loss(visual, text, 0.1, chunk=3), contrastive_loss(visual, text, 0.1), rtol=1e-6, atol=1e-6
    )


def test_half_precision_features_are_compared_in_single_precision():
    visual, text = torch.randn(4, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = local_contrastive_loss(visual, text, 0.01, chunk=3)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, contrastive_loss(visual.float(), text.float(), 0.01), rtol=1e-6, atol=1e-6)


def test_the_gradient_follows_a_factor_and_may_be_asked_for_twice():
    visual, text, temperature = features(5)
    loss = local_contrastive_loss(visual, text, temperature, chunk=2)
    (once,) = torch.autograd.grad(loss, [visual], retain_graph=True)
    (again,) = torch.autograd.grad(loss * 3, [visual])
    torch.testing.assert_close(again, once * 3)


def test_frozen_text_gets_no_gradient():
    visual, text, temperature = features(5)
    naive = features(5)
    local_contrastive_loss(visual, text.requires_grad_(False), temperature, chunk=2).backward()
    contrastive_loss(*naive).backward()
    assert text.grad is None
    torch.testing.assert_close(visual.grad, naive[0].grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(temperature.grad, naive[2].grad, rtol=1e-6, atol=1e-6)


@pytest.mark.dist
@pytest.mark.parametrize("name", CASES)
def test_ranks_average_to_the_global_loss_and_its_gradient(ranks, name):
    form, world, sizes, ids = CASES[name]
    num = sum(SIZES[world][sizes])
    visual, text, temperature, bias = leaves(num)
    identities = torch.arange(num) if IDS[ids] is None else torch.tensor(IDS[ids])[:num]
    if form == "softmax":
        expected = contrastive_loss(visual, text, temperature, identities)
    else:
        expected = naive_sigmoid_loss(visual, text, temperature, bias, identities)
    expected.backward()
    wanted = {"loss": expected.detach(), "visual": visual.grad, "text": text.grad, "temperature": temperature.grad}
    if form == "sigmoid":
        wanted["bias"] = bias.grad
    for first in range(0, len(ranks), world):
        found = [each[name] for each in ranks[first : first + world]]
        mean = {key: torch.stack([each[key] for each in found]).mean(0) for key in wanted}
        # The full matrix has targets in single precision.
        torch.testing.assert_close(mean, wanted, rtol=1e-7, atol=1e-7)

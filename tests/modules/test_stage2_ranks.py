"""Two ranks of stage 2, and of CLIP, against one process: losses, gradients, weights after steps of one medium each."""

from pathlib import Path

import pytest
import torch

from tests.modules import clip_case, clip_ranks
from tests.modules.stage2_case import batch, fit, gradients, hearing, make, whole
from tests.modules.stage2_ranks import HEARING, SHARES
from tests.ops.launch import run_ranks

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found."""
    return run_ranks(Path(__file__).with_name("stage2_ranks.py"), tmp_path_factory.mktemp("ranks"))


def rows_of(name):
    """Of all ranks."""
    return [row for share in SHARES[name] for row in share]


def alone(name, **options):
    """The same samples in one process."""
    return taken(make(negatives_group=2, **options), batch(rows_of(name)))


def taken(module, data):
    loss = module.training_step(data, 0)
    loss.backward()
    zeros = {name: torch.zeros_like(each) for name, each in module.model.named_parameters()}
    return loss.detach(), zeros | gradients(module)


@pytest.mark.parametrize("name", ["even", "uneven"])
def test_ranks_together_take_the_step_of_one_process(ranks, name):
    loss, expected = alone(name)
    for found in ranks:
        torch.testing.assert_close(found[name]["loss"], loss)
        torch.testing.assert_close(found[name]["gradients"], expected, rtol=1e-4, atol=1e-5)


def test_a_rank_without_samples_takes_part(ranks):
    loss, expected = alone("one empty")
    for found in ranks:
        torch.testing.assert_close(found["one empty"]["loss"], loss)
        torch.testing.assert_close(found["one empty"]["gradients"], expected, rtol=1e-4, atol=1e-5)


def test_reference_gradient_scale_divides_the_encoders_gradient_by_the_ranks(ranks):
    _, expected = alone("even", terms={"vtc": 1.0})
    for found in ranks:
        torch.testing.assert_close(found["default"]["gradients"], expected, rtol=1e-4, atol=1e-5)
        halved = {name: each / (1 if name == "temperature" else 2) for name, each in expected.items()}
        torch.testing.assert_close(found["reference"]["gradients"], halved, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEARING)
def test_terms_of_two_ranks_that_hear_are_those_of_one(ranks, name):
    options = HEARING[name] | {"encode_chunk": None}
    loss, expected = taken(hearing(negatives_group=2, **options), whole(rows=rows_of("uneven")))
    for found in ranks:
        torch.testing.assert_close(found[name]["loss"], loss)
        torch.testing.assert_close(found[name]["gradients"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("engine", "shares"), [("replicated", "even"), ("sharded", "uneven")])
def test_steps_of_one_medium_each_leave_the_weights_of_one_process(ranks, engine, shares):
    """Parameters of terms that a step does not have are not touched: no decay, no momentum."""
    module = hearing(negatives_group=2)
    before = {name: each.detach().clone() for name, each in module.model.named_parameters()}
    fit(module, lambda data: module.training_step(data, 0), rows_of(shares))
    expected = {name: each.detach() for name, each in module.model.named_parameters()}
    moved = {name.split(".")[0] for name, each in expected.items() if not torch.equal(before[name], each)}
    assert moved == {name.split(".")[0] for name in expected}
    for found in ranks:
        torch.testing.assert_close(found[engine], expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("form", clip_ranks.FORMS)
@pytest.mark.parametrize("name", SHARES)
def test_clip_on_two_ranks_takes_the_step_of_one(ranks, form, name):
    loss, expected = taken(clip_ranks.build(form), clip_case.batch(rows_of(name)))
    assert sum(bool(each.any()) for each in expected.values()) > 5
    for found in ranks:
        torch.testing.assert_close(found[f"clip {form} {name}"]["loss"], loss)
        torch.testing.assert_close(found[f"clip {form} {name}"]["gradients"], expected, rtol=1e-4, atol=1e-5)

"""Oracle: both sides of the suite compute the same step, and ours computes less of it."""

from dataclasses import replace

import pytest
import torch

from ivt2.cli.benchmarks.masked_steps import without_trainer
from ivt2.cli.benchmarks.stage2_step import (
    Stage2StepSuite,
    build,
    case_of,
    make_batch,
    our_optimizer,
    plain_step,
    plain_twin,
)
from ivt2.cli.benchmarks.student_step import plain_optimizer
from ivt2.errors import InputError


def small(dropout=0.0):
    case = case_of("tiny", dropout)
    vision = replace(case.vision, image_size=16, patch_size=8, num_frames=2, embed_dim=16, depth=1, pooled_dim=12)
    text = replace(case.text, embed_dim=24, num_heads=2, mlp_dim=32, depth=3, fusion_layer=1, encoder_width=16)
    return case._replace(vision=vision, text=text, num_clips=3)


@pytest.fixture(params=["plain", "shared"])
def sides(request):
    """Our module and a batch, the other side and what it is given; weights are the same and not as at the start."""
    case = small()
    module, batch = build(case), make_batch(case)
    with torch.no_grad():
        for name, parameter in module.model.named_parameters():
            if name != "temperature":
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return module, batch, plain_twin(module, case, request.param), plain_step(module, batch)


def test_both_steps_have_the_same_losses_gradients_and_new_weights(sides):
    module, batch, plain, step = sides
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    module.training_step(batch, 0).backward()
    theirs = dict(zip(("vtc", "vtm", "mlm"), plain(step), strict=True))
    for name, loss in theirs.items():
        torch.testing.assert_close(logged[f"train/loss_{name}"], loss.detach(), rtol=1e-5, atol=1e-6, msg=name)
    sum(theirs.values()).backward()
    twins = dict(plain.named_parameters())
    for name, ours in module.model.named_parameters():
        torch.testing.assert_close(ours.grad, twins[name].grad, rtol=1e-3, atol=2e-6, msg=name)
        twins[name].grad = ours.grad.clone()
    our_optimizer(module).step()
    plain_optimizer(plain).step()
    for name, ours in module.model.named_parameters():
        torch.testing.assert_close(ours, twins[name], rtol=1e-6, atol=1e-7, msg=name)


def test_our_step_computes_no_padding_no_key_twice_and_no_word_that_is_not_asked_for(sides):
    module, batch, _, step = sides
    rows = {}

    def count(name):
        def hook(_, given):
            rows.setdefault(name, []).append(given[0].shape[:-1].numel())

        return hook

    bert = module.model.text_encoder
    parts = {
        "key": bert.layers[1].cross_attention.key,
        "first": bert.layers[0].feed_forward,
        "fusion": bert.layers[1].feed_forward,
        "last": bert.layers[2].feed_forward,
        "words": bert.masked_lm_head,
    }
    for name, part in parts.items():
        part.register_forward_pre_hook(count(name))
    with without_trainer():
        module.training_step(batch, 0)
    words, hidden = int(step.valid.sum()), int((step.labels >= 0).sum())
    visible = 1 + int((~step.masked[0]).sum())
    wrong = rows["fusion"][0] - 3 * words
    lengths = step.valid.sum(dim=1)
    assert rows["key"] == [3 * visible]
    assert rows["first"] == [2 * words]
    assert lengths.min() * 3 <= wrong <= lengths.max() * 3, "pairs with wrong captions, which have lengths of their own"
    assert rows["last"] == [9 + hidden]
    assert rows["words"] == [hidden]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sizes", ["large"]),
        ("vision_encoders", []),
        ("vision_encoders", ["shared", "mine"]),
        ("num_clips.tiny", {"tiny": 1, "s14": 4}),
    ],
)
def test_unknown_choices_are_refused(name, given):
    arguments = {"sizes": ["tiny"], "num_clips": {"tiny": 2}, "vision_encoders": ["plain"]}
    with pytest.raises(InputError, match=f"{name}="):
        Stage2StepSuite(**arguments | {name.split(".")[0]: given}, dropout=0.0, pairs=1)

"""Exact: the loss that a name stands for."""

import pytest
import torch

from ivt2.errors import InputError
from ivt2.losses import contrast
from ivt2.losses.contrast import Contrast
from ivt2.losses.contrastive import contrastive_loss
from tests.losses.test_sigmoid import naive_sigmoid_loss

IDS = torch.tensor([0, 1, 0, 3, 4])
BIAS = torch.tensor([-2.0])


def features():
    torch.manual_seed(0)
    return torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_every_form_is_its_plain_loss(form, chunk):
    ours, plain = features(), features()
    loss = Contrast(form=form, chunk=chunk)(*ours, 0.2, IDS, BIAS)
    expected = contrastive_loss(*plain, 0.2, IDS) if form == "softmax" else naive_sigmoid_loss(*plain, 0.2, BIAS, IDS)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "called"),
    [
        ({}, {"contrastive_loss": None}),
        ({"chunk": 3}, {"local_contrastive_loss": 3}),
        ({"form": "sigmoid"}, {"sigmoid_loss": None}),
        ({"form": "sigmoid", "chunk": 3}, {"sigmoid_loss": 3}),
    ],
    ids=str,
)
def test_the_whole_matrix_is_made_only_where_it_is_asked_for(options, called, monkeypatch):
    found = {}
    for name in ("contrastive_loss", "local_contrastive_loss", "sigmoid_loss"):
        monkeypatch.setattr(
            contrast, name, lambda *_, name=name, chunk=None: found.update({name: chunk}) or torch.zeros(())
        )
    Contrast(**options)(*features(), 0.2, IDS, BIAS)
    assert found == called


@pytest.mark.parametrize("flag", [False, True])
def test_the_references_scale_reaches_the_gather(flag, monkeypatch):
    found = []
    monkeypatch.setattr(contrast, "all_gather", lambda x, **options: (found.append(options), x)[1])
    Contrast(reference_gradient_scale=flag)(*features(), 0.2, IDS)
    assert sorted(found, key=len, reverse=True) == [{"reference_gradient_scale": flag}] * 2 + [{}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0}, r"contrast\.chunk=0: give the rows"),
        ({"form": "sigmoid", "reference_gradient_scale": True}, "take form=softmax and chunk=null"),
        ({"chunk": 8, "reference_gradient_scale": True}, "take form=softmax and chunk=null"),
    ],
    ids=str,
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Contrast(**options)


def test_the_bias_must_fit_the_form():
    Contrast(form="sigmoid").check_bias(learned=True)
    Contrast().check_bias(learned=False)
    with pytest.raises(InputError, match=r"needs a learned bias: set module\.model\.logit_bias=-10"):
        Contrast(form="sigmoid").check_bias(learned=False)
    with pytest.raises(InputError, match=r"has no use for module\.model\.logit_bias"):
        Contrast().check_bias(learned=True)

"""Stochastic depth."""

import pytest
import torch

from ivt2.errors import InputError
from ivt2.nn.drop_path import DropPath


def test_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(20000, 2, 3))
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    torch.testing.assert_close(out[:, 0, 0].unique(), torch.tensor([0, 1 / 0.75]))
    assert out.mean().item() == pytest.approx(1, abs=0.02)


def test_identity_in_eval_mode_and_at_rate_zero():
    x = torch.randn(4, 2)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


@pytest.mark.parametrize("rate", [1.0, -0.1, 2.0])
def test_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(InputError, match=f"drop_path={rate}"):
        DropPath(rate)

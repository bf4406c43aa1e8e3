"""Perceptron: both forms of GELU."""

import math

import pytest
import torch

from ivt2.nn.mlp import Mlp


def erf_gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("gelu", "formula"), [("erf", erf_gelu), ("tanh", tanh_gelu)])
def test_equals_the_formula(gelu, formula):
    torch.manual_seed(0)
    mlp, x = Mlp(6, 10, gelu=gelu).double(), torch.randn(4, 3, 6).double() * 3
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    torch.testing.assert_close(mlp(x), formula(hidden) @ mlp.fc2.weight.T + mlp.fc2.bias)


def test_default_is_tanh():
    torch.manual_seed(0)
    mlp, x = Mlp(6, 10), torch.randn(4, 6)
    erf = Mlp(6, 10, gelu="erf")
    erf.load_state_dict(mlp.state_dict())
    assert not torch.equal(mlp(x), erf(x))
    torch.testing.assert_close(mlp(x), erf(x), atol=1e-3, rtol=0)


def test_output_may_have_a_width_of_its_own():
    mlp = Mlp(6, 10, out_dim=3)
    assert mlp(torch.randn(2, 6)).shape == (2, 3)
    assert mlp.fc2.weight.shape == (3, 10)

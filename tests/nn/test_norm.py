"""RMS normalisation against its formula."""

import pytest
import torch

from ivt2.nn.norm import RMSNorm


def make(dim=8):
    norm = RMSNorm(dim)
    assert torch.equal(norm.weight, torch.ones(dim))
    norm.weight.data = torch.linspace(0.5, 2, dim)
    return norm


def formula(x, weight, eps=1e-6):
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e3])
def test_equals_the_formula(size):
    norm, x = make(), torch.randn(2, 3, 8) * size
    torch.testing.assert_close(norm(x).double(), formula(x, norm.weight), atol=1e-6, rtol=1e-5)


def test_eps_is_inside_the_root():
    norm, x = make(), torch.full((1, 8), 1e-3)
    torch.testing.assert_close(norm(x)[0].double(), norm.weight.double() * 0.5**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    """Computed in float32 with the float32 weight: the exact value, rounded."""
    norm, x = make(), (torch.randn(64, 8) * 100).to(dtype)
    out = norm(x)
    assert out.dtype == dtype
    exact = formula(x, norm.weight).to(dtype)
    assert (out != exact).float().mean() < 0.01
    torch.testing.assert_close(out, exact, atol=0, rtol=1e-2)


def test_float16_does_not_overflow():
    assert make()(torch.full((1, 8), 6e4, dtype=torch.float16)).isfinite().all()

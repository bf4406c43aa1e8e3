"""Oracle: the polar factor that a singular value decomposition gives; exact: sizes, constants, several ranks."""

import numpy as np
import pytest
import torch

from ivt2.ops import whitening
from ivt2.ops.whitening import whiten


def features(*shape):
    """Nearly the same vector again and again, as tokens of a small network are."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(shape[-1], shape[-1], generator=generator)
    return 30 + torch.randn(*shape, generator=generator) @ mixing


def test_equals_the_polar_factor_of_centred_features():
    x = features(4, 50, 6)
    centred = x.flatten(0, 1).double().numpy()
    centred -= centred.mean(axis=0)
    left, _, right = np.linalg.svd(centred, full_matrices=False)
    wanted = np.sqrt(len(centred)) * left @ right
    found = whiten(x, eps=0.0)
    assert found.shape == x.shape
    np.testing.assert_allclose(found.flatten(0, 1).numpy(), wanted, rtol=0, atol=1e-4)


def test_spread_is_the_same_in_every_direction_but_those_of_noise():
    x = features(500, 6)
    x[:, 5] = x[:, 4] + 1e-6 * torch.randn(500, generator=torch.Generator().manual_seed(1))
    spread = torch.linalg.eigvalsh(torch.cov(whiten(x).double().T, correction=0))
    torch.testing.assert_close(spread[1:], torch.ones(5).double(), atol=0.05, rtol=0)
    assert spread[0] < 1e-3


def test_ranks_whiten_by_what_all_of_them_hold(monkeypatch):
    x = features(40, 6)
    whole = whiten(x)
    parts = x.split([30, 10])
    moments = []
    monkeypatch.setattr(whitening, "all_gather", lambda each: moments.append(each) or each)
    for part in parts:
        whiten(part)
    monkeypatch.setattr(whitening, "all_gather", lambda each: torch.cat(moments))
    torch.testing.assert_close(torch.cat([whiten(part) for part in parts]), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("x", [torch.zeros(0, 4), torch.full((7, 4), 3.0), torch.ones(1, 4)])
def test_features_without_spread_become_zero(x):
    torch.testing.assert_close(whiten(x), torch.zeros_like(x))

"""Start of the weights."""

import pytest
import torch
from torch import nn

from ivt2.nn.block import LayerScale
from ivt2.nn.init import init_weights
from ivt2.nn.norm import RMSNorm


def test_each_kind_of_module_gets_its_start():
    torch.manual_seed(0)
    linear, norm = nn.Linear(200, 100), nn.LayerNorm(8)
    network = nn.Sequential(linear, norm, RMSNorm(8), LayerScale(8, init=0.1), nn.Linear(3, 3, bias=False))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 9)
    network.apply(init_weights)
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert linear.weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert linear.bias.abs().sum() == 0
    assert torch.equal(norm.weight, torch.ones(8))
    assert norm.bias.abs().sum() == 0
    assert torch.equal(network[2].weight, torch.ones(8))
    torch.testing.assert_close(network[3].gamma, torch.full((8,), 0.1))


def test_convolution_starts_as_torch_starts_it():
    """Patches of 14 x 14 in three channels: uniform within 1 / sqrt(588)."""
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 64, (1, 14, 14))
    nn.init.constant_(conv.weight, 9)
    init_weights(conv)
    assert conv.weight.abs().max().item() == pytest.approx(588**-0.5, rel=1e-2)
    assert conv.weight.std().item() == pytest.approx(0.0238, abs=2e-4)

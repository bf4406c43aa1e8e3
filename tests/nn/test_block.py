"""Transformer block: the equation, LayerScale, stochastic depth."""

import pytest
import torch
from torch import nn

from ivt2.nn.block import Block, LayerScale


def test_block_is_the_equation():
    torch.manual_seed(0)
    block, x = Block(12, 3, mlp_ratio=2.5, layer_scale_init=0.3), torch.randn(2, 5, 12)
    middle = x + 0.3 * block.attn(block.norm1(x))
    expected = middle + 0.3 * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(x), expected)
    assert block.mlp.fc1.weight.shape == (30, 12)


def test_hidden_width_is_truncated():
    """48/11 of 48 is 209.45; of 1408 it must be 6144 and not one less."""
    assert Block(48, 3, mlp_ratio=48 / 11).mlp.fc1.out_features == 209
    with torch.device("meta"):
        assert Block(1408, 16, mlp_ratio=48 / 11).mlp.fc1.out_features == 6144


def test_layer_scale_can_be_left_out():
    block = Block(8, 2, mlp_ratio=1.0, layer_scale_init=None)
    assert isinstance(block.ls1, nn.Identity)
    assert not [name for name, _ in block.named_parameters() if name.startswith("ls")]


@pytest.mark.parametrize("fp32", [True, False])
def test_layer_scale_keeps_the_dtype(fp32):
    scale = LayerScale(4, init=0.1, fp32=fp32)
    x = torch.randn(3, 4).to(torch.bfloat16)
    out = scale(x)
    assert out.dtype == torch.bfloat16
    factor = torch.tensor(0.1) if fp32 else torch.tensor(0.1).to(torch.bfloat16)
    assert torch.equal(out, (x.to(factor.dtype) * factor).to(torch.bfloat16))


def test_float32_product_differs_from_half_precision_product():
    x = torch.linspace(1, 2, 200).to(torch.bfloat16).unsqueeze(1)
    assert not torch.equal(LayerScale(1, init=0.1, fp32=True)(x), LayerScale(1, init=0.1, fp32=False)(x))


def test_branches_drop_independently():
    torch.manual_seed(0)
    block = Block(8, 2, mlp_ratio=1.0, layer_scale_init=1.0, drop_path=0.5).train()
    x = torch.randn(1, 3, 8).expand(200, -1, -1)
    assert len({round(out.sum().item(), 3) for out in block(x)}) == 4


def test_float64_stays():
    block = Block(8, 2, mlp_ratio=1.0).double()
    assert block(torch.randn(1, 3, 8).double()).dtype == torch.float64

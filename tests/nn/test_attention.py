"""Attention modules against torch's own multi-head attention."""

import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from ivt2.nn.attention import CrossAttention, SelfAttention


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_self_attention_equals_torch(qkv_bias, backend):
    torch.manual_seed(0)
    ours = SelfAttention(12, 3, qkv_bias=qkv_bias, qk_norm=False, backend=backend)
    judge = nn.MultiheadAttention(12, 3, batch_first=True)
    judge.in_proj_weight.data = ours.qkv.weight.data
    judge.in_proj_bias.data = ours.qkv.bias.data if qkv_bias else torch.zeros(36)
    judge.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), judge(x, x, x, need_weights=False)[0])


def test_bias_hides_keys():
    """Judge: the same tokens without the hidden ones."""
    torch.manual_seed(0)
    ours, x = SelfAttention(12, 3, qk_norm=False), torch.randn(2, 5, 12)
    bias = torch.zeros(2, 1, 1, 5)
    bias[..., 3:] = -torch.inf
    torch.testing.assert_close(ours(x, bias)[:, :3], ours(x[:, :3]))


def test_norm_of_queries_and_keys_spans_all_heads():
    """Scaling one head's queries changes the other heads, which a norm for each head would not do."""
    torch.manual_seed(0)
    ours = SelfAttention(8, 2)
    ours.proj.weight.data = torch.eye(8)
    nn.init.zeros_(ours.proj.bias)
    assert ours.q_norm.weight.shape == ours.k_norm.weight.shape == (8,)
    x = torch.randn(1, 4, 8)
    before = ours(x)
    ours.qkv.weight.data[:4] *= 10
    assert not torch.allclose(ours(x)[..., 4:], before[..., 4:], atol=1e-4)


def test_norm_makes_the_length_of_queries_irrelevant():
    torch.manual_seed(0)
    ours, x = SelfAttention(8, 2), torch.randn(1, 4, 8)
    before = ours(x)
    ours.qkv.weight.data[:16] *= 7
    torch.testing.assert_close(ours(x), before, atol=1e-5, rtol=1e-4)


def test_cross_attention_equals_torch_with_its_weights():
    torch.manual_seed(0)
    ours = CrossAttention(12, 3, 12)
    judge = nn.MultiheadAttention(12, 3, batch_first=True)
    judge.in_proj_weight.data = torch.cat([each.weight for each in (ours.q, ours.k, ours.v)]).detach()
    judge.in_proj_bias.data = torch.cat([each.bias for each in (ours.q, ours.k, ours.v)]).detach()
    judge.out_proj.load_state_dict(ours.proj.state_dict())
    query, key, value = torch.randn(2, 2, 12), torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    out, weights = judge(query, key, value, average_attn_weights=False)
    torch.testing.assert_close(ours(query, key, value), out)
    torch.testing.assert_close(ours.weights(query, key), weights)


@pytest.mark.parametrize("build", [lambda: SelfAttention(10, 3), lambda: CrossAttention(10, 3, 4)])
def test_heads_that_cannot_share_the_width_are_refused(build):
    with pytest.raises(InputError, match="width 10 cannot be shared by 3 heads"):
        build()

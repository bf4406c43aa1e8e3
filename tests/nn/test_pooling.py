"""Attention pooling against its formula."""

import torch

from ivt2.nn.pooling import AttentionPool


def make():
    torch.manual_seed(0)
    pool = AttentionPool(12, 4, 5).double()
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    return pool, torch.randn(2, 7, 12).double()


def test_pool_equals_the_formula_head_by_head():
    pool, x = make()
    query = pool.norm1_q(x.mean(dim=1, keepdim=True))
    q, k, v = pool.cross_attn.q(query), pool.cross_attn.k(pool.norm1_k(x)), pool.cross_attn.v(pool.norm1_v(x))
    heads, maps = [], []
    for head in range(4):
        part = slice(3 * head, 3 * head + 3)
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 3**0.5, dim=-1)
        heads.append(weights @ v[..., part])
        maps.append(weights[:, 0])
    expected = pool.cross_attn.proj(torch.cat(heads, dim=-1))[:, 0]
    torch.testing.assert_close(pool(x), expected)
    torch.testing.assert_close(pool.attention_map(x), torch.stack(maps).mean(dim=0))


def test_attention_map_sums_to_one():
    pool, x = make()
    torch.testing.assert_close(pool.attention_map(x).sum(dim=1), torch.ones(2).double())


def test_bias_of_the_keys_changes_nothing():
    """It shifts all scores of a query alike."""
    pool, x = make()
    before = pool(x)
    pool.cross_attn.k.bias.data += 3
    torch.testing.assert_close(pool(x), before)


def test_order_of_tokens_changes_nothing():
    pool, x = make()
    torch.testing.assert_close(pool(x.flip(1)), pool(x))

"""Exact: where tokens stand when padding is left out, and what hides it."""

import pytest
import torch

from ivt2.models.bert_layers import Layout, padding_bias, select

KEPT = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)


def test_chosen_tokens_stand_at_the_left_in_as_few_columns_as_will_do():
    positions, layout = select(KEPT)
    assert positions.tolist() == [0, 2, 3, 17]
    assert layout.num_columns == 3
    assert layout.valid.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    tokens = torch.arange(1.0, 9.0).view(4, 2)
    spread = layout.spread(tokens)
    assert spread[..., 0].tolist() == [[1, 3, 5], [0, 0, 0], [7, 0, 0]]
    assert torch.equal(layout.collect(spread), tokens)


def test_a_chosen_token_that_is_not_real_is_not_looked_at():
    valid = torch.tensor([[1, 0, 1, 0, 0, 0], [0] * 6, [0] * 6], dtype=torch.bool)
    assert select(KEPT, valid).layout.valid.tolist() == [[True, True, False], [False] * 3, [False] * 3]


@pytest.mark.parametrize("num_texts", [0, 2])
def test_all_tokens_stand_where_they_are(num_texts):
    everything = torch.ones(num_texts, 3, dtype=torch.bool)
    assert select(everything) == (None, Layout(num_texts, 3))
    layout = Layout(num_texts, 3)
    tokens = torch.rand(num_texts * 3, 4)
    assert torch.equal(layout.spread(tokens), tokens.view(num_texts, 3, 4))
    assert torch.equal(layout.collect(layout.spread(tokens)), tokens)


def test_nothing_chosen_leaves_a_column_to_look_at():
    positions, layout = select(torch.zeros(2, 3, dtype=torch.bool))
    assert len(positions) == 0
    assert layout.spread(torch.zeros(0, 4)).shape == (2, 1, 4)
    assert layout.collect(torch.zeros(2, 1, 4)).shape == (0, 4)


def test_padding_bias_values():
    valid = torch.tensor([[True, False]])
    assert padding_bias(valid, -10000.0, torch.float32).tolist() == [[[[0.0, -10000.0]]]]
    least = padding_bias(valid, None, torch.bfloat16)
    assert least.dtype == torch.bfloat16
    assert least[0, 0, 0, 1] == torch.finfo(torch.bfloat16).min
    assert padding_bias(None, None, torch.float32) is None

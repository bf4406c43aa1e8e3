"""Masks: counts, places, and gathering what is visible."""

import math

import pytest
import torch

from ivt2.errors import InputError
from ivt2.ops.masking import (
    attention_masking,
    gather_rows,
    gather_tokens,
    num_visible,
    random_masking,
    tube_masking,
    visible_indices,
)
from ivt2.ops.random import uniform


@pytest.mark.parametrize(
    ("patches", "ratio", "hidden"),
    [
        (1024, 0.8, 819),
        (256, 0.5, 128),
        (2048, 0.8, 1638),
        (16, 0.0, 0),
        (7, 0.99, 6),
        *((patches, math.nextafter(1, 0), patches - 1) for patches in (1, 2, 3, 5, 7, 64, 2047)),
    ],
)
def test_random_masking_hides_the_truncated_share(patches, ratio, hidden):
    """Visible tokens of stage 2 (spec: video 205, image 128) and of distillation (410); never none at all."""
    masked = random_masking(uniform(torch.arange(3), patches, 0), ratio)
    assert masked.shape == (3, patches)
    assert masked.sum(dim=1).tolist() == [hidden] * 3


def test_random_masking_hides_the_smallest_noise():
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.3], [0.2, 0.2, 0.2, 0.1]])
    expected = torch.tensor([[False, True, False, True], [True, False, False, True]])
    assert torch.equal(random_masking(noise, 0.5), expected)


def test_masks_of_a_seed_are_those_of_plain_integers():
    """Nothing is computed but integers and their order, so masks are the same on every device."""
    multipliers, gamma, bits = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB), 0x9E3779B97F4A7C15, 2**64 - 1

    def mixed(value):
        value = (value ^ value >> 30) * multipliers[0] & bits
        value = (value ^ value >> 27) * multipliers[1] & bits
        return value ^ value >> 31

    for seed in (0, 1, 2**63 - 1, -5):
        key = mixed((seed & bits) ^ mixed(4 + 1))
        hashes = [mixed(key + place * gamma & bits) >> 40 for place in range(1, 41)]
        hidden = sorted(range(40), key=lambda place: hashes[place])[: int(0.8 * 40)]
        masked = random_masking(uniform(torch.tensor([seed]), 40, 4), 0.8)
        assert masked.nonzero()[:, 1].tolist() == sorted(hidden)


def test_random_masking_hides_each_patch_equally_often():
    masked = random_masking(uniform(torch.arange(4000), 20, 1), 0.75)
    share = masked.float().mean(dim=0)
    assert share.min() > 0.72
    assert share.max() < 0.78


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 12), (0.8, 12), (0.0, 0)])
def test_tube_masking_hides_the_same_patches_in_each_frame(ratio, hidden):
    noise = uniform(torch.arange(5), 16, 0)
    frames = tube_masking(noise, ratio, num_frames=4).view(5, 4, 16)
    assert torch.equal(frames, frames[:, :1].expand_as(frames))
    assert torch.equal(frames[:, 0], random_masking(noise, ratio))
    assert frames[:, 0].sum(dim=1).tolist() == [hidden] * 5


@pytest.mark.parametrize("shape", [(3, 5, 12), (3, 60)], ids=["frame", "clip"])
@pytest.mark.parametrize("ratio", [0.8, 0.5, 0.0])
def test_attention_masking_is_a_draw_without_replacement(shape, ratio):
    """The judge is torch's own draw, which divides by noise of the same generator."""
    attention = torch.rand(shape)
    rows, kept = attention.flatten(0, -2), shape[-1] - int(shape[-1] * ratio)
    torch.manual_seed(7)
    drawn = torch.multinomial(rows, shape[-1])[:, :kept]
    expected = torch.ones_like(rows, dtype=torch.bool).scatter(1, drawn, False)
    torch.manual_seed(7)
    masked = attention_masking(attention, torch.empty_like(rows).exponential_().view(shape), ratio)
    assert torch.equal(masked, expected.view(3, 60))


def test_attention_masking_shows_patches_without_attention_last_and_equally_often():
    attention = torch.tensor([0.0, 0.7, 0.0, 0.3, 0.0, 0.0]).expand(6000, 6)
    noise = -torch.log1p(-uniform(torch.arange(6000), 6, 0))
    share = 1 - attention_masking(attention, noise, 0.5).float().mean(dim=0)
    torch.testing.assert_close(share, torch.tensor([0.25, 1.0, 0.25, 1.0, 0.25, 0.25]), atol=0.03, rtol=0)
    assert attention_masking(torch.zeros(2, 3, 6), torch.zeros(2, 3, 6), 0.5).sum(dim=1).tolist() == [9, 9]


def test_attention_masking_counts_in_the_precision_of_the_noise():
    """Most weights of a sharp attention are below the smallest normal number of half precision."""
    noise = torch.empty(2, 4, 256).exponential_()
    rounded = torch.softmax(4 * torch.randn(2, 4, 256), dim=-1).half()
    expected = attention_masking(rounded.float(), noise, 0.8)
    assert torch.equal(attention_masking(rounded, noise, 0.8), expected)
    assert (~expected).sum(dim=1).tolist() == [4 * 52] * 2


@pytest.mark.parametrize(
    ("ratio", "message"),
    [(1.0, "mask ratio 1.0 hides everything"), (1.5, "1.5"), (-0.1, "-0.1"), (float("nan"), "nan")],
)
def test_meaningless_ratio_is_refused(ratio, message):
    noise = torch.rand(2, 8)
    with pytest.raises(InputError, match=message):
        random_masking(noise, ratio)
    with pytest.raises(InputError, match=message):
        tube_masking(noise, ratio, num_frames=2)
    with pytest.raises(InputError, match=message):
        attention_masking(noise, noise, ratio)


def test_visible_indices_ascend_and_agree_with_boolean_indexing():
    masked = random_masking(uniform(torch.arange(6), 40, 0), 0.6)
    index = visible_indices(masked)
    assert index.shape == (6, 16)
    assert (index.diff(dim=1) > 0).all()
    tokens = torch.randn(6, 40, 3)
    assert torch.equal(gather_tokens(tokens, index), tokens[~masked].view(6, 16, 3))


@pytest.mark.parametrize("rows", [[[1, 0, 0, 0], [1, 1, 1, 0]], [[1, 1], [1, 1]]])
def test_ragged_or_full_mask_is_refused(rows):
    """The first would even reshape: four visible patches in all, but not two in each row."""
    with pytest.raises(ValueError, match="same number of patches and at least one"):
        visible_indices(torch.tensor(rows, dtype=torch.bool))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.8, 0.99])
def test_number_of_visible_patches_is_known_before_the_mask(ratio):
    noise = torch.rand(3, 50)
    for masked, shown in (
        (random_masking(noise, ratio), num_visible(50, ratio)),
        (tube_masking(noise, ratio, 4), 4 * num_visible(50, ratio)),
        (attention_masking(noise.view(3, 5, 10), noise.view(3, 5, 10) + 0.1, ratio), 5 * num_visible(10, ratio)),
    ):
        assert set((~masked).sum(dim=1).tolist()) == {shown}
        assert torch.equal(visible_indices(masked, shown), visible_indices(masked))


def test_rows_of_a_shared_table_are_those_of_its_copies():
    table, index = torch.randn(1, 6, 3), torch.tensor([[0, 4], [2, 5]])
    assert torch.equal(gather_rows(table, index), gather_tokens(table.expand(2, -1, -1), index))
    assert gather_rows(table, None) is table

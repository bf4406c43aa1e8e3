"""Clips cut into boxes, and boxes brought to mean 0 and variance 1."""

import pytest
import torch

from ivt2.ops.tubelets import cut_tubelets, normalize_tubelets


def test_cut_tubelets_equals_a_loop():
    video = torch.arange(2 * 4 * 3 * 6 * 4).view(2, 4, 3, 6, 4)
    found = cut_tubelets(video, tubelet_size=2, patch_size=2)
    assert found.shape == (2, 2 * 3 * 2, 2 * 2 * 2, 3)
    for clip in range(2):
        boxes = [
            video[clip, 2 * frame : 2 * frame + 2, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            for frame in range(2)
            for row in range(3)
            for column in range(2)
        ]
        for box, cut in zip(boxes, found[clip], strict=True):
            pixels = [box[frame, :, y, x] for frame in range(2) for y in range(2) for x in range(2)]
            assert torch.equal(cut, torch.stack(pixels))


def test_normalize_tubelets_equals_a_loop_over_channels():
    boxes = torch.randn(2, 3, 8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 2
    found = normalize_tubelets(boxes, eps=0.25)
    for clip in range(2):
        for place in range(3):
            for channel in range(3):
                values = boxes[clip, place, :, channel].tolist()
                mean = sum(values) / 8
                deviation = (sum((value - mean) ** 2 for value in values) / 8 + 0.25) ** 0.5
                expected = [(value - mean) / deviation for value in values]
                assert found[clip, place, :, channel].tolist() == pytest.approx(expected)


def test_a_flat_tubelet_has_a_target_of_zero_and_faint_noise_stays_faint():
    flat = torch.full((1, 8, 3), 7.0)
    assert not normalize_tubelets(flat, eps=1e-6).any()
    noisy = flat + 0.01 * torch.tensor([1.0, -1.0]).repeat(4).view(1, 8, 1)
    assert normalize_tubelets(noisy, eps=1e-2).abs().max() < 0.1
    assert normalize_tubelets(noisy, eps=1e-8).abs().max() > 0.99

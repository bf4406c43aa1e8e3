"""Bytes to normalised floats."""

import torch

from ivt2.ops.pixels import normalize_pixels


def test_each_channel_is_shifted_and_scaled():
    video = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3, 1, 1)
    out = normalize_pixels(video, mean=(0.5, 0.1, 0.0), std=(0.5, 0.2, 4.0))
    torch.testing.assert_close(out.flatten(), torch.tensor([-1.0, 0.5, 0.25]))


def test_floats_pass():
    video = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64)
    assert normalize_pixels(video) is video

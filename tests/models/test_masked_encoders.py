"""Oracle: what an encoder says of visible patches is what whole clips give where nobody attends to hidden ones."""

import pytest
import torch

from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.videomae import VideoMAE
from ivt2.ops.masking import random_masking
from ivt2.ops.random import uniform
from tests.modules.masked_case import shaken

SIZES = {
    "image_size": 12, "patch_size": 4, "num_frames": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0,
}  # fmt: skip


def internvideo2():
    return shaken(InternVideo2(**SIZES, pool_num_heads=2, pooled_dim=6, layer_scale_init=1.0), 0).eval()


def videomae():
    return shaken(VideoMAE(**SIZES), 1).eval()


def limited(encoder, video, masked):
    """Tokens of whole clips after each block; the CLS token, which is never hidden, first where there is one."""
    positions = encoder.pos_embed
    num_prefix = positions.shape[1] - masked.shape[1]
    tokens = encoder.patch_embed(video) + positions[:, num_prefix:]
    if num_prefix:
        cls = encoder.cls_token + positions[:, :num_prefix]
        tokens = torch.cat([cls.expand(len(video), -1, -1), tokens], dim=1)
    hidden = torch.cat([torch.zeros(len(video), num_prefix, dtype=torch.bool), masked], dim=1)
    bias = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None, None]
    streams = []
    for block in encoder.blocks:
        tokens = block(tokens, bias)
        streams.append(tokens)
    return torch.stack(streams), ~hidden


@pytest.mark.parametrize("make", [internvideo2, videomae])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.8])
@torch.no_grad()
def test_masked_clips_are_whole_ones_without_a_look_at_hidden_patches(make, ratio):
    encoder = make()
    video = torch.randint(0, 256, (3, 4, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    num_patches = 9 * encoder.grid_frames
    masked = random_masking(uniform(torch.arange(3), num_patches, 0), ratio)
    whole, shown = limited(encoder, video, masked)
    expected = torch.stack([layer[shown].view(3, -1, 16) for layer in whole])
    if make is videomae:
        expected[-1] = encoder.norm(expected[-1])
        found = encoder(video, masked, taps=(0, 1, 2))
    else:
        encoded = encoder(video, masked, (0, 1, 2))
        found = encoded.intermediates
        torch.testing.assert_close(encoded.pooled, encoder.clip_projector(expected[-1]))
    assert found.shape[2] == num_patches - int(ratio * num_patches) + (make is internvideo2)
    torch.testing.assert_close(found, expected)

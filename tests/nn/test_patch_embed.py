"""Patch projection: order of tokens and of pixels, inflation."""

import pytest
import torch

from ivt2.errors import InputError
from ivt2.nn.patch_embed import PatchEmbed, inflate_patch_kernel


@pytest.mark.parametrize("tubelet_size", [1, 2])
def test_token_is_the_projection_of_its_box_of_pixels(tubelet_size):
    torch.manual_seed(0)
    embed, video = PatchEmbed(patch_size=2, tubelet_size=tubelet_size, embed_dim=5), torch.randn(2, 4, 3, 6, 6)
    tokens = embed(video)
    assert tokens.shape == (2, 4 // tubelet_size * 9, 5)
    for t in range(4 // tubelet_size):
        for y in range(3):
            for x in range(3):
                frames = slice(t * tubelet_size, (t + 1) * tubelet_size)
                box = video[:, frames, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].transpose(1, 2).flatten(1)
                expected = box @ embed.proj.weight.flatten(1).T + embed.proj.bias
                torch.testing.assert_close(tokens[:, 9 * t + 3 * y + x], expected)
    visible = torch.tensor([[0, 5, 7], [2, 10, 17]]) % tokens.shape[1]
    shown = torch.stack([clip[index] for clip, index in zip(tokens, visible, strict=True)])
    torch.testing.assert_close(embed(video, visible), shown)


def test_input_takes_the_dtype_of_the_weights():
    embed = PatchEmbed(patch_size=2, tubelet_size=1, embed_dim=4).to(torch.bfloat16)
    assert embed(torch.randn(1, 1, 3, 4, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("tubelet_size", [1, 2, 3])
def test_inflated_kernel_gives_the_image_tokens_on_a_still_clip(center, tubelet_size):
    torch.manual_seed(0)
    image = PatchEmbed(patch_size=2, tubelet_size=1, embed_dim=4)
    video = PatchEmbed(patch_size=2, tubelet_size=tubelet_size, embed_dim=4)
    video.proj.weight.data = inflate_patch_kernel(image.proj.weight.data, tubelet_size, center=center)
    video.proj.bias = image.proj.bias
    frame = torch.randn(1, 1, 3, 4, 4)
    torch.testing.assert_close(video(frame.expand(-1, tubelet_size, -1, -1, -1)), image(frame))


def test_centre_kernel_sees_the_middle_frame_alone():
    weight = torch.randn(4, 3, 2, 2)
    inflated = inflate_patch_kernel(weight, 3, center=True)
    assert torch.equal(inflated[:, :, 1], weight)
    assert inflated[:, :, [0, 2]].abs().sum() == 0
    assert torch.equal(inflate_patch_kernel(weight, 2, center=True)[:, :, 1], weight)


def test_tubelet_without_frames_is_refused():
    with pytest.raises(InputError, match="tubelet_size=0"):
        inflate_patch_kernel(torch.zeros(4, 3, 2, 2), 0, center=True)

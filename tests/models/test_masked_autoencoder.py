"""A masked autoencoder: what reaches a prediction, which pixels it is compared with, start, errors."""

import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from ivt2.models.masked_autoencoder import MaskedAutoencoder
from ivt2.models.videomae import VideoMAE
from ivt2.ops.pixels import normalize_pixels
from ivt2.ops.position import sincos_3d

SIZES = {"image_size": 8, "patch_size": 4, "num_frames": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
DECODER = {"decoder_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2}
MASKED = torch.tensor([[True, False, True, True, True, False, True, True],
                       [False, True, True, True, True, True, True, False]])  # fmt: skip


def make(**options):
    torch.manual_seed(0)
    model = MaskedAutoencoder(VideoMAE(**SIZES, mlp_ratio=2.0), **DECODER | options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def clips():
    return torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def shown(masked):
    """Pixels that a mask of 2 x 2 x 2 tubelets leaves visible."""
    boxes = (~masked).view(2, 2, 1, 2, 2)
    return boxes.repeat_interleave(2, 1).repeat_interleave(4, 3).repeat_interleave(4, 4)


def test_forward_is_the_equation():
    """Token by token: embedded visible ones and one learned vector elsewhere, each with its place, hidden ones out."""
    model, video = make(), clips()
    table = sincos_3d(16, 2, 2)[1:]
    for clip in range(2):
        mask = MASKED[clip]
        encoded = model.encoder(video[clip : clip + 1], mask.unsqueeze(0), taps=(1,))[0, 0]
        rows, taken = [], 0
        for place in range(8):
            token = model.mask_token if mask[place] else model.decoder_embed.weight @ encoded[taken]
            taken += not mask[place]
            rows.append(token + table[place])
        tokens = torch.stack(rows).unsqueeze(0)
        for block in model.decoder_blocks:
            tokens = block(tokens)
        expected = model.decoder_head(model.decoder_norm(tokens))[0, mask]
        torch.testing.assert_close(model(video, MASKED)[clip], expected)


def test_hidden_pixels_do_not_reach_a_prediction_and_visible_ones_reach_all():
    model, video = make(), clips()
    predicted = model(video, MASKED)
    assert predicted.shape == (2, 6, 2 * 4 * 4 * 3)
    other = torch.where(shown(MASKED), video, 255 - video)
    assert torch.equal(model(other, MASKED), predicted)
    changed = torch.where(shown(MASKED), 255 - video, video)
    assert ((model(changed, MASKED) - predicted).abs().amax(dim=2) > 1e-4).all()


def test_targets_are_the_normalised_pixels_of_hidden_tubelets_in_order():
    model, video = make(target_eps=0.5), clips()
    pixels = normalize_pixels(video, model.encoder.mean, model.encoder.std)
    found = model.targets(video, MASKED)
    for clip in range(2):
        for row, place in enumerate(MASKED[clip].nonzero().flatten().tolist()):
            frame, y, x = 2 * (place // 4), 4 * (place // 2 % 2), 4 * (place % 2)
            box = pixels[clip, frame : frame + 2, :, y : y + 4, x : x + 4]
            deviation = (box.var(dim=(0, 2, 3), correction=0, keepdim=True) + 0.5).sqrt()
            expected = (box - box.mean(dim=(0, 2, 3), keepdim=True)) / deviation
            torch.testing.assert_close(found[clip, row], expected.permute(0, 2, 3, 1).flatten())
    assert torch.equal(model.targets(pixels, MASKED), found)


def test_targets_may_be_the_encoders_pixels_as_they_are():
    """Painted back into their places they are the video, and what is visible is left out."""
    model, video = make(target_eps=None), clips()
    pixels = normalize_pixels(video, model.encoder.mean, model.encoder.std)
    painted = torch.zeros_like(pixels)
    for clip in range(2):
        targets = iter(model.targets(video, MASKED)[clip])
        for place in MASKED[clip].nonzero().flatten().tolist():
            frame, y, x = 2 * (place // 4), 4 * (place // 2 % 2), 4 * (place % 2)
            box = next(targets).view(2, 4, 4, 3).permute(0, 3, 1, 2)
            painted[clip, frame : frame + 2, :, y : y + 4, x : x + 4] = box
    assert torch.equal(painted, torch.where(shown(MASKED), 0.0, pixels))


def test_encode_video_is_the_mean_of_the_encoders_last_tokens():
    model, video = make(), clips()
    expected = model.encoder(video, taps=(1,))[0].mean(dim=1)
    torch.testing.assert_close(model.encode_video(video), expected)


def test_a_fresh_start_forgets_what_was_learned_and_survives_the_meta_device():
    ready, video = make(), clips()
    with torch.device("meta"):
        emptied = MaskedAutoencoder(VideoMAE(**SIZES, mlp_ratio=2.0), **DECODER).eval()
    emptied.to_empty(device="cpu").reset_parameters()
    assert all(parameter.isfinite().all() for parameter in emptied.parameters())
    assert emptied.mask_token.abs().max() < 0.1
    assert not emptied.decoder_head.bias.any()
    for block in (emptied.encoder.blocks[0], emptied.decoder_blocks[0]):
        assert not block.attn.q_bias.any()
        rows, columns = block.mlp.fc1.weight.shape
        assert block.mlp.fc1.weight.std().item() == pytest.approx((2 / (rows + columns)) ** 0.5, rel=0.15)
    emptied.load_state_dict(ready.state_dict())
    assert torch.equal(emptied(video, MASKED), ready(video, MASKED))
    assert not any("pos_embed" in name for name in ready.state_dict())


def test_units_of_a_sharded_engine_are_all_blocks():
    model = make()
    assert list(model.sharding_units()) == [*model.encoder.blocks, *model.decoder_blocks]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_depth": 0}, "decoder_depth=0"),
        ({"decoder_num_heads": 3}, "heads"),
        ({"decoder_dim": 8}, "use a multiple of 16"),
    ],
)
def test_sizes_that_cannot_work_are_named(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)

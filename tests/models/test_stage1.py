"""The student of stage 1: which streams reach which decoder, masks, start, errors."""

import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.stage1 import Stage1Student
from ivt2.nn.aligning import AligningDecoders
from ivt2.ops.masking import random_masking, visible_indices


def make(mae=True, clip_taps=(1, 3), mae_taps=(0, 1, 2)):
    torch.manual_seed(0)
    encoder = InternVideo2(
        image_size=8,
        patch_size=4,
        num_frames=4,
        embed_dim=32,
        depth=4,
        num_heads=4,
        mlp_ratio=2.0,
        layer_scale_init=0.5,
        pool_num_heads=2,
        pooled_dim=12,
    )
    sizes = {"embed_dim": 32, "pooled_dim": 12, "num_frames": 4, "grid_size": 2}
    clip = AligningDecoders(**sizes, num_layers=2, teacher_dim=10, final_dim=6)
    others = AligningDecoders(**sizes, num_layers=3, teacher_dim=9, final_dim=0, decoder="mlp", cls_token=False)
    student = Stage1Student(
        encoder, clip, others if mae else None, clip_taps=clip_taps, mae_taps=mae_taps if mae else ()
    )
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.3)
    return student.eval()


def clips():
    return torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("ratio", [None, 0.75])
def test_each_branch_decodes_the_streams_of_its_taps(ratio):
    student, video = make(), clips()
    masked = None if ratio is None else random_masking(torch.rand(2, 16), ratio)
    visible = 16 if ratio is None else 4
    features = student(video, masked)
    assert features.clip_middle.shape == (2, 2, 1 + visible, 10)
    assert features.clip_final.shape == (2, 6)
    assert features.mae.shape == (3, 2, visible, 9)
    for taps, decoders, streams in (
        (student.clip_taps, student.clip_decoders, features.clip_middle),
        (student.mae_taps, student.mae_decoders, features.mae),
    ):
        encoded = student.encoder(video, masked, taps)
        expected = decoders(encoded.intermediates, encoded.pooled, masked=masked)
        torch.testing.assert_close(streams, expected.middle)
    torch.testing.assert_close(features.clip_final, student.clip_decoders.final(encoded.pooled))


def test_positions_of_visible_patches_stand_for_the_mask():
    student, video, masked = make(), clips(), random_masking(torch.rand(2, 16), 0.75)
    visible = visible_indices(masked, 4)
    for shown, hidden in zip(student(video, visible=visible), student(video, masked), strict=True):
        assert torch.equal(shown, hidden)
    taps = student.encoder(video, visible=visible, taps=(1,)).intermediates
    assert torch.equal(taps, student.encoder(video, masked, taps=(1,)).intermediates)


def test_layers_for_the_loss_have_the_directions_of_the_features():
    student, video, masked = make(), clips(), random_masking(torch.rand(2, 16), 0.75)
    features, layers = student(video, masked), student.decode(video, masked)
    for unit, raw in (
        (features.clip_middle, torch.stack(layers.clip_middle)),
        (features.clip_final, layers.clip_final),
        (features.mae, torch.stack(layers.mae)),
    ):
        torch.testing.assert_close(nn.functional.normalize(raw, dim=-1), unit)
        assert not torch.allclose(raw.norm(dim=-1), torch.ones(()))
    alone = make(mae=False).decode(video, masked)
    assert alone.mae is None


def test_distillation_has_one_branch():
    student = make(mae=False)
    features = student(clips())
    assert features.mae is None
    torch.testing.assert_close(features.clip_middle, make()(clips()).clip_middle)
    assert not [name for name in student.state_dict() if name.startswith("mae")]


def test_images_get_the_positions_of_images():
    student, image = make(), clips()[:, :1]
    encoded = student.encoder(image, None, student.clip_taps)
    expected = student.clip_decoders(encoded.intermediates, encoded.pooled, image=True)
    torch.testing.assert_close(student(image).clip_middle, expected.middle)
    assert student(image).mae.shape == (3, 2, 4, 9)


def test_weights_start_anew_after_meta():
    with torch.device("meta"):
        student = make()
    student.to_empty(device="cpu")
    for tensor in student.state_dict().values():
        tensor.fill_(7)
    student.reset_parameters()
    assert not any((tensor == 7).any() for tensor in student.state_dict().values())


def test_positions_do_not_decay():
    assert make().no_weight_decay() == {
        "encoder.cls_token",
        "encoder.pos_embed",
        "clip_decoders.pos_embed",
        "mae_decoders.pos_embed",
    }
    assert make(mae=False).no_weight_decay() == {"encoder.cls_token", "encoder.pos_embed", "clip_decoders.pos_embed"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_taps": (3, 1)}, "clip_taps=.3, 1. must increase"),
        ({"clip_taps": (1, 4)}, "clip_taps=.1, 4. must increase and lie in .0, 4."),
        ({"mae_taps": (1, 2)}, "mae_taps=.1, 2. are 2 blocks for 3 decoders"),
        ({"mae_taps": (-1, 0, 1)}, "mae_taps"),
    ],
)
def test_taps_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)

"""Frozen teachers: unit vectors, no gradients, evaluation mode, targets of visible tokens."""

import pytest
import torch
from torch.nn import functional

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.teacher import InternVideo2Teacher, TeacherFeatures, VideoMAETeacher
from ivt2.models.videomae import VideoMAE
from ivt2.ops.masking import random_masking
from ivt2.ops.pixels import normalize_pixels

SIZES = {"image_size": 8, "patch_size": 4, "num_frames": 4, "embed_dim": 32, "depth": 3, "num_heads": 4,
         "mlp_ratio": 2.0}  # fmt: skip


def make(kind="internvideo2", *, normalize=True):
    torch.manual_seed(0)
    if kind == "videomae":
        teacher = VideoMAETeacher(VideoMAE(**SIZES), taps=(1, 2), normalize=normalize)
    else:
        encoder = InternVideo2(**SIZES, pool_num_heads=2, pooled_dim=12, drop_path=0.5)
        teacher = InternVideo2Teacher(encoder, taps=(0, 2), normalize=normalize)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher


def clips(size=8):
    return torch.randn(2, 4, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_features_of_internvideo2():
    teacher, video = make(), clips()
    features = teacher(video)
    encoded = teacher.encoder(video, taps=(0, 2))
    torch.testing.assert_close(features.middle, functional.normalize(encoded.intermediates, dim=-1))
    torch.testing.assert_close(features.final, functional.normalize(encoded.pooled, dim=-1))
    whole = teacher.encoder.clip_projector.attention_map(encoded.tokens)
    torch.testing.assert_close(features.attention, whole[:, 1:])
    assert features.attention.shape == (2, 16)
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("kind", ["internvideo2", "videomae"])
def test_features_are_unit_vectors_unless_that_is_off(kind):
    features, raw = make(kind)(clips()), make(kind, normalize=False)(clips())
    length = features.middle.norm(dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length))
    assert (raw.middle.norm(dim=-1) - 1).abs().min() > 0.1
    torch.testing.assert_close(functional.normalize(raw.middle, dim=-1), features.middle)


def test_videomae_has_tokens_alone():
    features = make("videomae")(clips())
    assert features.middle.shape == (2, 2, 8, 32)
    assert features.final is None
    assert features.attention is None


@pytest.mark.parametrize("kind", ["internvideo2", "videomae"])
def test_teacher_stays_frozen_in_training(kind):
    """Stochastic depth of the encoder would make two calls differ."""
    model = torch.nn.ModuleDict({"teacher": make(kind), "student": torch.nn.Linear(2, 2)}).train()
    teacher, video = model["teacher"], clips()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    first, second = teacher(video.requires_grad_()), teacher(video)
    assert torch.equal(first.middle, second.middle)
    assert not first.middle.requires_grad


def test_parameters_stay_frozen_when_weights_are_assigned():
    with torch.device("meta"):
        teacher = make()
    teacher.load_state_dict(make().state_dict(), assign=True)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("with_cls", [True, False])
def test_visible_keeps_the_cls_token_and_the_visible_patches(with_cls):
    tokens = torch.randn(3, 2, 8 + with_cls, 5)
    masked = random_masking(torch.rand(2, 8, generator=torch.Generator().manual_seed(0)), 0.5)
    shown = TeacherFeatures(tokens, None, None).visible(masked)
    for clip in range(2):
        rows = ([0] if with_cls else []) + [n + with_cls for n in range(8) if not masked[clip, n]]
        assert torch.equal(shown.middle[:, clip], tokens[:, clip, rows])


def test_mask_of_other_patches_is_refused():
    with pytest.raises(ValueError, match="a mask of 6 patches does not fit 8 tokens"):
        TeacherFeatures(torch.randn(1, 1, 8, 2), None, None).visible(torch.zeros(1, 6, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["internvideo2", "videomae"])
def test_frames_are_resized_to_the_teachers_own_size(kind):
    teacher, video = make(kind), clips(12)
    resized = functional.interpolate(video.flatten(0, 1), (8, 8), mode="bicubic", align_corners=False)
    expected = teacher(resized.view(2, 4, 3, 8, 8))
    torch.testing.assert_close(teacher(video).middle, expected.middle)


def test_bytes_are_normalised_before_they_are_resized():
    teacher, video = make(), torch.randint(0, 256, (2, 4, 3, 12, 12), dtype=torch.uint8)
    torch.testing.assert_close(teacher(video).middle, teacher(normalize_pixels(video)).middle)


def test_other_number_of_frames_is_refused():
    with pytest.raises(InputError, match="frames"):
        make()(clips()[:, :3])

"""InternVL-C as a teacher: each frame by itself, averages over frames before unit length."""

import pytest
import torch
from torch.nn.functional import normalize

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2, taps_from_end
from ivt2.models.internvl import InternVLTeacher
from ivt2.models.published import internvl_c

TINY = {"image_size": 8, "patch_size": 4, "num_frames": 1, "embed_dim": 32, "depth": 3, "num_heads": 4,
        "mlp_ratio": 2.0, "pool_num_heads": 2, "pooled_dim": 12}  # fmt: skip


def make(**changes):
    torch.manual_seed(0)
    teacher = InternVLTeacher(InternVideo2(**TINY), taps=(1, 2), **changes)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher


def clips():
    return torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_forward_of_the_published_size_on_meta():
    with torch.device("meta"):
        teacher = InternVLTeacher(internvl_c(), taps=taps_from_end(48, 6))
        features = teacher(torch.empty(2, 8, 3, 224, 224, dtype=torch.uint8))
    assert features.middle.shape == (6, 2, 2049, 3200)
    assert features.final.shape == (2, 768)
    assert features.attention.shape == (16, 256)


@pytest.mark.parametrize("unit", [True, False])
def test_features_equal_a_loop_over_frames(unit):
    teacher, video = make(normalize=unit), clips()
    features = teacher(video)
    for clip in range(2):
        frames = [teacher.encoder(frame[None, None], taps=(1, 2)) for frame in video[clip]]
        streams = [frame.intermediates[:, 0] for frame in frames]
        cls = torch.stack([stream[:, :1] for stream in streams]).mean(dim=0)
        middle = torch.cat([cls, *(stream[:, 1:] for stream in streams)], dim=1)
        final = torch.stack([frame.pooled[0] for frame in frames]).mean(dim=0)
        if unit:
            middle, final = normalize(middle, dim=-1), normalize(final, dim=-1)
        torch.testing.assert_close(features.middle[:, clip], middle)
        torch.testing.assert_close(features.final[clip], final)
        pool = teacher.encoder.clip_projector
        maps = torch.cat([pool.attention_map(frame.tokens)[:, 1:] for frame in frames])
        torch.testing.assert_close(features.attention.view(2, 5, 4)[clip], maps)


def test_frames_do_not_see_each_other():
    teacher, video = make(), clips()
    other = video.clone()
    other[:, 3:] = 7.0
    torch.testing.assert_close(teacher(other).middle[:, :, 1:13], teacher(video).middle[:, :, 1:13])


def test_teacher_stays_in_evaluation_mode():
    teacher = make().train()
    assert not any(module.training for module in teacher.modules())
    assert not teacher(clips()).middle.requires_grad


def test_encoder_of_clips_is_refused():
    with pytest.raises(InputError, match="4 frames: build it with num_frames=1"):
        InternVLTeacher(InternVideo2(**TINY | {"num_frames": 4}), taps=(2,))

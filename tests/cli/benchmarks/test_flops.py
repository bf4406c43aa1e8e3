"""Oracle: operations by hand, from the widths alone, and from a table of the published networks."""

from pathlib import Path

import pytest
import torch
import yaml

from ivt2.cli.benchmarks.flops import TRAINING, forward_flops, pixels, step_flops
from ivt2.models.internvl import InternVLTeacher
from ivt2.models.published import internvl_c, stage1_student, video_encoder, videomae_v2_g
from ivt2.models.teacher import VideoMAETeacher
from ivt2.ops.masking import num_visible
from tests.modules.masked_case import student, teacher_of_frames

CARD = Path(__file__).parents[3] / "experiments" / "stage1_1b"
PATCHES = 8 * 256
VISIBLE = 8 * num_visible(256, 0.8)
TABLE = {"s14": (22.1, 166.5), "b14": (80.1, 509.5), "l14": (273.2, 1661.3), "1b": (887.6, 5101.4)}
"""Billions of a pass forward over 8 frames, of the visible fifth and of all, each with all patches embedded."""


def indices(number):
    return torch.empty(1, number, dtype=torch.int64, device="meta")


def of_all_blocks(encoder, **named):
    """Blocks cost the same, so two of them tell what all cost."""
    one, two = (forward_flops(encoder, pixels(8, 224), num_blocks=num, **named) for num in (1, 2))
    return one + (encoder.depth - 1) * (two - one)


@pytest.mark.parametrize("size", TABLE)
def test_encoders_of_the_table(size):
    with torch.device("meta"):
        encoder = video_encoder(size, num_frames=8)
    masked, full = TABLE[size]
    assert VISIBLE + 1 == 417
    hidden = 2 * (PATCHES - VISIBLE) * 3 * 14**2 * encoder.embed_dim  # our encoder does not embed them
    assert of_all_blocks(encoder) / 1e9 == pytest.approx(full, abs=0.06)
    found = of_all_blocks(encoder, visible=indices(VISIBLE))
    assert (found + hidden) / 1e9 == pytest.approx(masked, abs=0.06)


def test_blocks_are_counted_as_by_hand():
    with torch.device("meta"):
        encoder = video_encoder("s14", num_frames=8)
    tokens, dim = VISIBLE + 1, 384
    blocks = 12 * (2 * tokens * (4 * dim**2 + 2 * dim * 1536) + 4 * tokens**2 * dim)
    pooling = 2 * (2 * tokens * dim**2 + 2 * dim**2 + 768 * dim) + 4 * tokens * dim
    embedding = 2 * VISIBLE * 3 * 14**2 * dim
    found = forward_flops(encoder, pixels(8, 224), visible=indices(VISIBLE))
    assert found == pytest.approx(blocks + pooling + embedding, rel=1e-3)


def test_a_step_of_the_published_recipe():
    with torch.device("meta"):
        frames = InternVLTeacher(internvl_c(), taps=range(42, 48))
        tubelets = VideoMAETeacher(videomae_v2_g(), taps=range(36, 40))
        learner = stage1_student("1b")
    both = step_flops(learner, [frames, tubelets], mask_ratio=0.8)
    keys = 2 * 8 * 257 * 3200**2  # of the attention that masks follow
    assert (both.teachers - keys) / 1e12 == pytest.approx(24.67 + 5.09, abs=0.01)
    assert both.student / 1e12 == pytest.approx(2.770, abs=0.01)  # decoders included
    assert both.total == both.student + both.teachers
    card = yaml.safe_load((CARD / "result.yaml").read_text())["counted"]
    assert card["tflop_per_clip"] == round(both.total / 1e12, 2)
    assert card["teachers_percent"] == round(100 * both.teachers / both.total, 1)
    assert card["parameters"] == sum(each.numel() for each in learner.parameters())


def test_views_multiply_the_student_and_the_network_is_left_as_it_is():
    network = student().train()
    before = dict(network.named_parameters())
    one, three = (step_flops(network, [teacher_of_frames()], mask_ratio=0.6, masks_per_clip=num) for num in (1, 3))
    assert three == (3 * one.student, one.teachers)
    assert one.student % TRAINING == 0
    assert network.training
    assert all(each is before[name] and not each.is_meta for name, each in network.named_parameters())

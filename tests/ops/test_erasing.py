import math

import numpy as np
import pytest
import torch

from ivt2.ops.erasing import erased_box, random_erasing


def test_boxes_have_the_drawn_area_and_ratio():
    boxes = [erased_box(seed, 100, 120) for seed in range(4000)]
    drawn = [box for box in boxes if box is not None]
    assert len(drawn) / 4000 == pytest.approx(0.25, abs=0.025)
    areas = np.array([box.height * box.width / 12000 for box in drawn])
    ratios = np.array([math.log(box.height / box.width) for box in drawn])
    assert 0.018 < areas.min() < 0.03
    assert 0.32 < areas.max() < 0.335
    assert abs(np.median(areas) - (0.02 + 1 / 3) / 2) < 0.02
    assert -1.3 < ratios.min() < -1.0
    assert 1.0 < ratios.max() < 1.3
    assert all(0 <= box.top <= 100 - box.height and 0 <= box.left <= 120 - box.width for box in drawn)
    assert np.mean([box.top / (100 - box.height) for box in drawn]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([box.left / (120 - box.width) for box in drawn]) == pytest.approx(0.5, abs=0.04)


def test_impossible_boxes_leave_the_clip_alone():
    assert erased_box(0, 8, 8, probability=1.0, area=(1.0, 1.0)) is None
    assert all(erased_box(seed, 64, 64, probability=0.0) is None for seed in range(50))
    assert all(erased_box(seed, 64, 64, probability=1.0) is not None for seed in range(50))


def test_the_box_alone_changes_and_noise_differs_between_frames():
    video, seeds = torch.full((6, 3, 3, 24, 32), 9.0), torch.arange(6)
    erased = random_erasing(video, seeds, probability=0.5)
    boxes = [erased_box(seed, 24, 32, probability=0.5) for seed in range(6)]
    assert None in boxes
    assert any(boxes)
    for clip, box in zip(erased, boxes, strict=True):
        inside = torch.zeros(24, 32, dtype=torch.bool)
        if box is not None:
            inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
        assert (clip[..., ~inside] == 9).all()
        assert (clip[..., inside].abs() < 6).all()  # of the noise: the clip is at 9
        planes = clip[..., inside].flatten(0, 1)
        assert box is None or len(torch.unique(planes, dim=0)) == 9
    assert (video == 9).all()


def test_noise_is_standard_normal():
    video = torch.zeros(3, 8, 3, 64, 64)
    erased = random_erasing(video, torch.tensor([4, 5, 6]), probability=1.0)
    noise = erased[erased != 0].double()
    assert len(noise) > 20000
    assert noise.mean().item() == pytest.approx(0.0, abs=0.02)
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)


def test_a_clip_depends_on_its_own_seed_alone():
    video, seeds = torch.randn(6, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40, 46)
    whole = random_erasing(video, seeds, probability=0.7)
    torch.manual_seed(3)
    assert torch.equal(random_erasing(video[2:4], seeds[2:4], probability=0.7), whole[2:4])
    assert torch.equal(random_erasing(video.flip(0), seeds.flip(0), probability=0.7), whole.flip(0))
    assert not torch.equal(random_erasing(video, seeds + 6, probability=0.7), whole)


def test_half_precision_and_no_clips():
    video = torch.zeros(2, 1, 3, 16, 16, dtype=torch.bfloat16)
    assert random_erasing(video, torch.arange(2), probability=1.0).dtype == torch.bfloat16
    assert random_erasing(video[:0], torch.arange(0)).shape == (0, 1, 3, 16, 16)

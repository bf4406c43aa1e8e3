import numpy as np
import pytest
import torch
from torch.nn import functional

from ivt2.ops.erasing import Box
from ivt2.ops.mixup import Mix, draw_mix, mix_clips, mix_targets


def videos(num=4):
    return torch.randn(num, 2, 3, 6, 8, generator=torch.Generator().manual_seed(0))


def draws(num=3000, height=40, width=60, **options):
    return [draw_mix(torch.tensor([number, 7]), height, width, **options) for number in range(num)]


def test_mixup_by_hand():
    video = videos()
    mixed = mix_clips(video, Mix(0.7, None))
    for index in range(4):
        torch.testing.assert_close(mixed[index], 0.7 * video[index] + 0.3 * video[3 - index])


def test_cutmix_by_hand():
    video = videos(5)
    mixed = mix_clips(video, Mix(1 - 6 / 48, Box(2, 5, 3, 2)))
    for index in range(5):
        for row in range(6):
            for column in range(8):
                inside = 2 <= row < 5 and 5 <= column < 7
                source = video[4 - index if inside else index]
                assert torch.equal(mixed[index, ..., row, column], source[..., row, column])
    assert torch.equal(mixed[2], video[2])
    assert torch.equal(video, videos(5))


def test_targets_by_hand():
    targets = mix_targets(torch.tensor([0, 2, 1]), Mix(0.75, None), 4, smoothing=0.2)
    expected = [[0.65, 0.25, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05], [0.25, 0.65, 0.05, 0.05]]
    torch.testing.assert_close(targets, torch.tensor(expected))


def test_smoothing_alone_equals_torchs_own():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(6, 9, generator=generator), torch.randint(9, (6,), generator=generator)
    targets = mix_targets(labels, Mix(1.0, None), 9, smoothing=0.1)
    torch.testing.assert_close(
        functional.cross_entropy(logits, targets), functional.cross_entropy(logits, labels, label_smoothing=0.1)
    )


def test_share_is_the_area_that_stays():
    boxes = [mix for mix in draws() if mix.box is not None]
    assert len(boxes) / 3000 == pytest.approx(0.5, abs=0.03)
    for share, box in boxes:
        assert share == pytest.approx(1 - box.height * box.width / 2400)
        assert 0 <= box.top <= box.top + box.height <= 40
        assert 0 <= box.left <= box.left + box.width <= 60
        assert box.height % 2 == 0 or box.top == 0 or box.top + box.height == 40
    inner = [box for _, box in boxes if 0 < box.top < 40 - box.height and 0 < box.left < 60 - box.width]
    assert np.median([box.width / max(box.height, 1) for box in inner]) == pytest.approx(1.5, abs=0.1)


def test_shares_are_beta_distributed():
    shares = [mix.share for mix in draws(cutmix_probability=0.0)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.006)
    wide = [mix.share for mix in draws(cutmix_probability=0.0, mixup_alpha=5.0)]
    assert np.var(wide) == pytest.approx(1 / 44, abs=0.003)


def test_boxes_lose_what_lies_outside():
    """Of a side s the part inside is s (1 - s / 4) on average; s**2 is uniform, so the area is 1/2 - 1/5 + 1/48."""
    pasted = [1 - mix.share for mix in draws(2000, 224, 224, cutmix_probability=1.0)]
    assert np.mean(pasted) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)


def test_probability_of_a_mixture():
    assert sum(mix == Mix(1.0, None) for mix in draws(1000, probability=0.3)) == pytest.approx(700, abs=60)
    assert all(mix == Mix(1.0, None) for mix in draws(50, probability=0.0))
    assert torch.equal(mix_clips(videos(), Mix(1.0, None)), videos())


def test_draws_depend_on_the_seeds_of_the_batch_alone():
    seeds = torch.tensor([3, 9, -4])
    torch.manual_seed(0)
    first = draw_mix(seeds, 224, 224)
    np.random.seed(5)
    assert draw_mix(seeds, 224, 224) == first
    assert len({draw_mix(seeds + step, 224, 224).share for step in range(20)}) == 20
    assert draw_mix(seeds.flip(0), 224, 224) != first


def test_half_precision_keeps_its_type():
    assert mix_clips(videos().bfloat16(), Mix(0.5, None)).dtype == torch.bfloat16

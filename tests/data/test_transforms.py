import numpy as np
import pytest
import torch
from PIL import Image

from ivt2.data.transforms import (
    CenterCrop,
    Compose,
    HorizontalFlip,
    RandomResizedCrop,
    Resize,
    resize,
    view_corner,
)
from tests.data.clips import picture

KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def clip(num_frames=3, height=60, width=84):
    """As a decoder delivers it: channels last in memory."""
    pixels = np.stack([picture(number, height, width) for number in range(num_frames)])
    pixels ^= np.random.default_rng(0).integers(0, 32, pixels.shape, dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def generator(seed=0):
    return np.random.default_rng(seed)


def pil(video, height, width, kernel):
    frames = [Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((width, height), kernel) for frame in video]
    return torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(28, 28), (45, 33), (120, 100)])
@pytest.mark.parametrize("contiguous", [False, True])
def test_antialiased_resize_equals_pil_within_rounding(interpolation, size, contiguous):
    video = clip().contiguous() if contiguous else clip()
    resized = resize(video, *size, interpolation=interpolation)
    expected = pil(video, *size, KERNELS[interpolation])
    assert resized.dtype == torch.uint8
    difference = (resized.int() - expected.int()).abs()
    assert difference.max() <= 2
    assert (difference > 1).float().mean() < 1e-4


def cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def slow_row(row, size):
    """Keys' kernel of two pixels each side at every scale, borders repeated: what `antialias=False` means."""
    scale, out = len(row) / size, []
    for i in range(size):
        center = (i + 0.5) * scale - 0.5
        base = int(np.floor(center))
        taps = range(base - 1, base + 3)
        out.append(sum(row[min(max(tap, 0), len(row) - 1)] * cubic(center - tap) for tap in taps))
    return np.array(out)


def test_resize_without_antialias_equals_slow_loop():
    video = clip(1, 20, 26)
    expected = np.apply_along_axis(slow_row, 2, video[0].numpy().astype(float), 11)
    expected = np.apply_along_axis(slow_row, 1, expected, 9)
    resized = resize(video, 9, 11, antialias=False)[0].numpy()
    np.testing.assert_allclose(resized, np.clip(np.round(expected), 0, 255), atol=1)
    assert (resized == np.clip(np.round(expected), 0, 255)).mean() > 0.99


@pytest.mark.parametrize("antialias", [True, False])
def test_overshoot_is_clamped(antialias):
    video = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    video[..., 8:] = 255
    row = resize(video, 16, 40, antialias=antialias)[0, 0, 8]
    assert row[:12].max() == 0
    assert row[-12:].min() == 255


def test_resize_shapes():
    assert Resize(32)(clip(), generator()).shape == (3, 3, 32, 32)
    assert Resize(30, short_side=True)(clip(), generator()).shape == (3, 3, 30, 42)
    assert Resize(30, short_side=True)(clip().transpose(-1, -2), generator()).shape == (3, 3, 42, 30)


def test_center_crop_takes_the_middle():
    video = clip()
    assert torch.equal(CenterCrop(20)(video, generator()), video[..., 20:40, 32:52])
    with pytest.raises(ValueError, match="resize first"):
        CenterCrop(61)(video, generator())


def test_flip_mirrors_all_frames_or_none():
    video, mirrored = clip(), clip().flip(-1)
    flips = []
    for seed in range(200):
        flipped = HorizontalFlip()(video, generator(seed))
        flips.append(torch.equal(flipped, mirrored))
        assert flips[-1] or torch.equal(flipped, video)
    assert 70 < sum(flips) < 130
    assert all(torch.equal(HorizontalFlip(0.0)(video, generator(seed)), video) for seed in range(50))


def test_random_crop_is_one_box_for_all_frames():
    video = clip()
    crop = RandomResizedCrop(28, scale=(0.2, 0.5))
    top, left, rows, columns = crop.box(60, 84, generator(5))
    expected = pil(video[..., top : top + rows, left : left + columns], 28, 28, KERNELS["bicubic"])
    assert (crop(video, generator(5)).int() - expected.int()).abs().max() <= 1


def test_random_boxes_have_the_drawn_area_and_ratio():
    crop = RandomResizedCrop(28, scale=(0.3, 0.6), ratio=(0.5, 2.0))
    source, areas, ratios, tops, lefts = generator(0), [], [], [], []
    for _ in range(2000):
        top, left, rows, columns = crop.box(200, 300, source)
        assert 0 <= top <= 200 - rows
        assert 0 <= left <= 300 - columns
        areas.append(rows * columns / 60000)
        ratios.append(columns / rows)
        tops.append(top / max(200 - rows, 1))
        lefts.append(left / max(300 - columns, 1))
    assert 0.295 < min(areas) < 0.32
    assert 0.58 < max(areas) < 0.605
    assert 0.49 < min(ratios) < 0.6
    assert 1.8 < max(ratios) < 2.02
    assert abs(np.mean(tops) - 0.5) < 0.03
    assert abs(np.mean(lefts) - 0.5) < 0.03


def test_box_that_never_fits_falls_back_to_the_centre():
    crop = RandomResizedCrop(28, scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
    assert crop.box(60, 600, generator()) == (0, 260, 60, 80)
    assert crop.box(600, 60, generator()) == (260, 0, 80, 60)


def test_compose_applies_in_order_and_draws_from_the_one_generator():
    train = Compose([RandomResizedCrop(32), HorizontalFlip(), CenterCrop(28)])
    video = clip()
    first, again, other = (train(video, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 3, 28, 28)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_view_corners():
    assert [view_corner(224, 398, 224, view=view, num_views=3) for view in range(3)] == [(0, 0), (0, 87), (0, 174)]
    assert [view_corner(300, 224, 224, view=view, num_views=2) for view in range(2)] == [(0, 0), (76, 0)]
    assert view_corner(224, 398, 224) == (0, 87)

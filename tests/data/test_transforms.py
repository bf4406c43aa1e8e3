import numpy as np
import pytest
import torch
from PIL import Image

from ivt2.data.transforms import (
    CenterCrop,
    HorizontalFlip,
    MultiScaleCrop,
    RandomResizedCrop,
    Resize,
    ViewCrop,
    resize,
    view_corner,
)
from ivt2.errors import InputError
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


@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_long_clips_are_resized_in_pieces_alike(num_frames):
    video = clip(1, 600, 500).expand(num_frames, -1, -1, -1).clone()
    resized = resize(video, 40, 30)
    assert resized.shape == (num_frames, 3, 40, 30)
    assert resized.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(resized, resize(video[:1], 40, 30).expand(num_frames, -1, -1, -1))
    assert resize(video[:0], 40, 30).shape == (0, 3, 40, 30)


def cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def triangle(x):
    return max(1 - abs(x), 0)


def slow_row(row, size, kernel):
    """The kernel over two pixels each side at every scale, borders repeated: what `antialias=False` means."""
    scale, out = len(row) / size, []
    for i in range(size):
        center = (i + 0.5) * scale - 0.5
        base = int(np.floor(center))
        taps = range(base - 1, base + 3)
        out.append(sum(row[min(max(tap, 0), len(row) - 1)] * kernel(center - tap) for tap in taps))
    return np.array(out)


@pytest.mark.parametrize(("interpolation", "kernel", "exact"), [("bicubic", cubic, 0.99), ("bilinear", triangle, 0.7)])
def test_resize_without_antialias_equals_slow_loop(interpolation, kernel, exact):
    video = clip(1, 20, 26)
    expected = np.apply_along_axis(slow_row, 2, video[0].numpy().astype(float), 11, kernel)
    expected = np.apply_along_axis(slow_row, 1, expected, 9, kernel)
    resized = resize(video, 9, 11, interpolation=interpolation, antialias=False)[0].numpy()
    np.testing.assert_allclose(resized, np.clip(np.round(expected), 0, 255), atol=1)
    assert (resized == np.clip(np.round(expected), 0, 255)).mean() > exact
    assert abs(resized - np.clip(expected, 0, 255)).mean() < 0.35
    assert abs((resized - np.clip(expected, 0, 255)).mean()) < 0.1


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


def test_view_corners():
    assert [view_corner(224, 398, 224, view=view, num_views=3) for view in range(3)] == [(0, 0), (0, 87), (0, 174)]
    assert [view_corner(300, 224, 224, view=view, num_views=2) for view in range(2)] == [(0, 0), (76, 0)]
    assert view_corner(224, 398, 224) == (0, 87)


@pytest.mark.parametrize("turned", [False, True])
def test_three_views_cover_the_long_side(turned):
    video = clip(2, 30, 71).transpose(-1, -2) if turned else clip(2, 30, 71)
    views = [ViewCrop(30, view=view)(video, generator()) for view in range(3)]
    long = video.transpose(-1, -2) if turned else video
    for view, left in zip(views, (0, 20, 41), strict=True):
        assert torch.equal(view.transpose(-1, -2) if turned else view, long[..., left : left + 30])
    assert torch.equal(ViewCrop(30, view=0, num_views=1)(long, generator()), long[..., 20:50])


def test_views_that_do_not_exist_or_fit_are_refused():
    with pytest.raises(InputError, match="view=3: must be from 0 to 2"):
        ViewCrop(30, view=3)
    with pytest.raises(ValueError, match="resize first"):
        ViewCrop(61, view=0)(clip(), generator())


def slow_candidates(height, width, size, scales):
    """Every (top, left, rows, columns) that the rule allows, as often as it can be drawn."""
    boxes = []
    for i in range(len(scales)):
        for j in range(len(scales)):
            if abs(i - j) > 1:
                continue
            rows, columns = int(min(height, width) * scales[i]), int(min(height, width) * scales[j])
            if abs(rows - size) < 3:
                rows = size
            if abs(columns - size) < 3:
                columns = size
            down, right = (height - rows) // 4, (width - columns) // 4
            for top, left in [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (0, 2), (4, 2), (2, 0), (2, 4)]:
                boxes.append((top * down, left * right, rows, columns))
            for top, left in [(1, 1), (1, 3), (3, 1), (3, 3)]:
                boxes.append((top * down, left * right, rows, columns))
    return boxes


@pytest.mark.parametrize(("height", "width"), [(256, 340), (340, 256), (360, 640), (224, 398), (299, 299)])
def test_multi_scale_boxes_equal_a_slow_loop(height, width):
    expected = slow_candidates(height, width, 224, (1, 0.875, 0.75, 0.66))
    assert len(expected) == 130
    source, crop = generator(), MultiScaleCrop(224)
    drawn = [crop.box(height, width, source) for _ in range(6000)]
    assert set(drawn) == set(expected)
    chance = {box: expected.count(box) / 130 for box in set(expected)}
    for box, share in chance.items():
        assert drawn.count(box) / 6000 == pytest.approx(share, abs=5 * (share / 6000) ** 0.5)


def test_multi_scale_shapes_by_hand():
    assert MultiScaleCrop(224).shapes(256, 340) == [  # 256, 224, 192, 168
        *[(256, 256), (256, 224), (224, 256), (224, 224), (224, 192)],
        *[(192, 224), (192, 192), (192, 168), (168, 192), (168, 168)],
    ]
    assert MultiScaleCrop(224, scales=(1.0,)).shapes(226, 400) == [(224, 224)]
    assert MultiScaleCrop(224, scales=(1.0,)).shapes(227, 400) == [(227, 227)]
    assert MultiScaleCrop(224, scales=(1.0,)).shapes(222, 400) == [(222, 222)]  # 224 would not fit
    assert MultiScaleCrop(8, scales=(1.0, 0.5), max_distortion=0).shapes(32, 40) == [(32, 32), (16, 16)]


def test_multi_scale_crop_equals_pil_on_the_drawn_box():
    video, crop = clip(), MultiScaleCrop(28)
    for seed in range(10):
        top, left, rows, columns = crop.box(60, 84, generator(seed))
        cut = video[..., top : top + rows, left : left + columns]
        expected = pil(cut, 28, 28, KERNELS["bilinear"])
        assert (crop(video, generator(seed)).int() - expected.int()).abs().max() <= 1

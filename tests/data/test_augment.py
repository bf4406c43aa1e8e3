from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from ivt2.data.augment import OPERATIONS, ColorJitter, RandAugment, Warp, apply_operation
from ivt2.errors import InputError

WARP = Warp(Image.Resampling.BICUBIC, (128, 128, 128))


def clip(num_frames=3, height=40, width=56, seed=0):
    """Smooth noise, each frame of its own range of values, channels last in memory."""
    source = np.random.default_rng(seed)
    frames = []
    for number in range(num_frames):
        coarse = source.integers(20 * number, 200 + 15 * number, (height // 8, width // 8, 3), dtype=np.uint8)
        frames.append(np.asarray(Image.fromarray(coarse).resize((width, height))))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def generator(seed=0):
    return np.random.default_rng(seed)


def image(frame):
    return Image.fromarray(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()))


def tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def table(picture, function):
    return Image.fromarray(np.vectorize(function, otypes=[np.uint8])(np.asarray(picture)))


def affine(picture, matrix):
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)
    )


# What each does at magnitude 7 of 10, written out.
AT_SEVEN = {
    "auto_contrast": lambda picture, sign: ImageOps.autocontrast(picture),
    "equalize": lambda picture, sign: ImageOps.equalize(picture),
    "invert": lambda picture, sign: table(picture, lambda value: 255 - value),
    "rotate": lambda picture, sign: picture.rotate(
        sign * 21, resample=Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)
    ),
    "posterize": lambda picture, sign: table(picture, lambda value: value // 64 * 64),
    "solarize": lambda picture, sign: table(picture, lambda value: value if value < 77 else 255 - value),
    "solarize_add": lambda picture, sign: table(picture, lambda value: value + 77 if value < 128 else value),
    "color": lambda picture, sign: ImageEnhance.Color(picture).enhance(1 + sign * 0.63),
    "contrast": lambda picture, sign: ImageEnhance.Contrast(picture).enhance(1 + sign * 0.63),
    "brightness": lambda picture, sign: ImageEnhance.Brightness(picture).enhance(1 + sign * 0.63),
    "sharpness": lambda picture, sign: ImageEnhance.Sharpness(picture).enhance(1 + sign * 0.63),
    "shear_x": lambda picture, sign: affine(picture, (1, sign * 0.21, 0, 0, 1, 0)),
    "shear_y": lambda picture, sign: affine(picture, (1, 0, 0, sign * 0.21, 1, 0)),
    "translate_x": lambda picture, sign: affine(picture, (1, 0, sign * 0.315 * 56, 0, 1, 0)),
    "translate_y": lambda picture, sign: affine(picture, (1, 0, 0, 0, 1, sign * 0.315 * 40)),
}


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", sorted(AT_SEVEN))
def test_each_operation_equals_pil_bit_for_bit(name, sign):
    for frame in clip():
        actual = apply_operation(name, image(frame), sign * 0.7, WARP)
        assert torch.equal(tensor(actual), tensor(AT_SEVEN[name](image(frame), sign)))


def test_the_fifteen_operations():
    assert sorted(OPERATIONS) == sorted(AT_SEVEN)
    assert len(OPERATIONS) == 15


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("strength", [-1.0, 0.0, 1.0])
def test_operations_at_the_ends_of_the_range(name, strength):
    picture = image(clip()[0])
    changed = apply_operation(name, picture, strength, WARP)
    assert (changed.size, changed.mode) == (picture.size, "RGB")
    always = {"auto_contrast", "equalize", "invert", "posterize"}  # at 0 posterize keeps 4 bits
    assert (changed.tobytes() == picture.tobytes()) == (strength == 0 and name not in always)


@pytest.mark.parametrize("level", [0, 2.4, 2.5, 4.9, 5, 7.5, 9.9, 10])
def test_posterize_keeps_fewer_bits_at_higher_levels(level):
    picture = image(clip()[0])
    bits = 4 - int(level / 10 * 4)
    expected = ImageOps.posterize(picture, bits) if bits else Image.new("RGB", picture.size)
    assert apply_operation("posterize", picture, -level / 10, WARP).tobytes() == expected.tobytes()


def test_a_clip_gets_the_drawn_operations_on_every_frame():
    video, augment = clip(4), RandAugment()
    for seed in range(20):
        expected = video
        for name, strength in augment.draw(generator(seed)):
            frames = [apply_operation(name, image(frame), strength, WARP) for frame in expected]
            expected = torch.stack([tensor(frame) for frame in frames])
        assert torch.equal(augment(video, generator(seed)), expected)
        assert torch.equal(augment(video.contiguous(), generator(seed)), expected)


def test_what_is_drawn():
    augment, source = RandAugment(4, magnitude=7.0, magnitude_std=0.5), generator()
    draws = [augment.draw(source) for _ in range(3000)]
    names = Counter(name for drawn in draws for name, _ in drawn)
    strengths = np.array([strength for drawn in draws for _, strength in drawn])
    assert set(names) == set(OPERATIONS)
    assert max(names.values()) < 1.25 * min(names.values())
    assert Counter(len(drawn) for drawn in draws).keys() == {0, 1, 2, 3, 4}
    assert len(strengths) / 12000 == pytest.approx(0.5, abs=0.02)
    assert (strengths > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert np.abs(strengths).mean() == pytest.approx(0.7, abs=0.003)
    assert np.abs(strengths).std() == pytest.approx(0.05, abs=0.003)
    repeated = [len({name for name, _ in drawn}) < len(drawn) for drawn in draws]
    assert any(repeated)


def test_strengths_stay_within_the_range():
    strengths = [strength for _, strength in RandAugment(2000, magnitude=9.9, magnitude_std=2.0).draw(generator())]
    assert max(map(abs, strengths)) == 1.0
    low = [abs(strength) for _, strength in RandAugment(2000, magnitude=0.1, magnitude_std=2.0).draw(generator())]
    assert min(low) == 0.0
    constant = RandAugment(50, magnitude=3.0, magnitude_std=0.0, probability=1.0).draw(generator())
    assert {abs(strength) for _, strength in constant} == {0.3}
    assert len(constant) == 50


@pytest.mark.parametrize("magnitude", [-1.0, 10.5])
def test_magnitude_out_of_range_is_refused(magnitude):
    with pytest.raises(InputError, match=r"magnitude=.*must be from 0 to 10"):
        RandAugment(magnitude=magnitude)


def test_interpolation_and_fill_reach_the_operations():
    augment = RandAugment(1, magnitude=10.0, probability=1.0, interpolation="bilinear", fill=(1, 2, 3))
    video = clip(1)
    seed = next(seed for seed in range(500) if augment.draw(generator(seed))[0][0] == "translate_x")
    shifted = augment(video, generator(seed))[0]
    assert (shifted.flatten(1) == torch.tensor([[1], [2], [3]])).all(0).float().mean() > 0.4


@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_jitter_of_one_property_equals_pil_with_one_factor(name, enhance):
    video, jitter = clip(), ColorJitter(**{name: 0.4})
    changed = jitter(video, generator(3))
    draws = generator(3).uniform(size=3)
    factor = 0.6 + 0.8 * draws[["brightness", "contrast", "saturation"].index(name)]
    expected = torch.stack([tensor(enhance(image(frame)).enhance(factor)) for frame in video])
    assert torch.equal(changed, expected)


def test_hue_turns_the_colour_wheel():
    red = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 200
    turned = [ColorJitter(hue=0.5)(red, generator(seed)) for seed in range(40)]
    assert all((frame.amax(0) == 200).all() for video in turned for frame in video)  # value is kept
    assert all(torch.equal(video[0], video[1]) for video in turned)
    assert len({tuple(video[0, :, 0, 0].tolist()) for video in turned}) > 30
    assert torch.equal(ColorJitter()(red, generator()), red)


def test_jitter_steps_come_in_random_order():
    video, jitter = clip(1), ColorJitter(brightness=0.5, contrast=0.5)
    results = set()
    for seed in range(20):
        draws = generator(seed).uniform(size=2)
        brighter, contrast = ImageEnhance.Brightness, ImageEnhance.Contrast
        one = contrast(brighter(image(video[0])).enhance(0.5 + draws[0])).enhance(0.5 + draws[1])
        other = brighter(contrast(image(video[0])).enhance(0.5 + draws[1])).enhance(0.5 + draws[0])
        changed = jitter(video, generator(seed))[0]
        results.add((torch.equal(changed, tensor(one)), torch.equal(changed, tensor(other))))
    assert (True, False) in results
    assert (False, True) in results
    assert (False, False) not in results


@pytest.mark.parametrize("amounts", [{"brightness": -0.1}, {"hue": 0.6}, {"hue": -0.1}])
def test_amounts_out_of_range_are_refused(amounts):
    with pytest.raises(InputError, match="none may be negative"):
        ColorJitter(**amounts)

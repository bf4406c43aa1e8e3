"""Augmentations that PIL computes frame by frame, drawn once for the whole clip: RandAugment and colour jitter."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ivt2.data.transforms import Interpolation
from ivt2.errors import InputError

MAX_MAGNITUDE = 10.0

_Enhancer = ImageEnhance.Brightness | ImageEnhance.Contrast | ImageEnhance.Color

_KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Warp(NamedTuple):
    """How an operation that moves pixels samples them."""

    kernel: Image.Resampling
    fill: tuple[int, int, int]

    def affine(self, image: Image.Image, *coefficients: float) -> Image.Image:
        """Fetch pixel (x, y) from (a x + b y + c, d x + e y + f)."""
        return image.transform(image.size, Image.Transform.AFFINE, coefficients, self.kernel, fillcolor=self.fill)


# Strengths go from -1 to 1; the operations on values ignore the sign.
_PLAIN: dict[str, Callable[[Image.Image], Image.Image]] = {
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
}
_COLOR: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "posterize": lambda image, strength: _keep_bits(image, 4 - int(4 * abs(strength))),
    "solarize": lambda image, strength: ImageOps.solarize(image, 256 - int(256 * abs(strength))),
    "solarize_add": lambda image, strength: _brighten_dark(image, int(110 * abs(strength))),
    "color": lambda image, strength: ImageEnhance.Color(image).enhance(1.0 + 0.9 * strength),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(1.0 + 0.9 * strength),
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(1.0 + 0.9 * strength),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(1.0 + 0.9 * strength),
}
_GEOMETRY: dict[str, Callable[[Warp, Image.Image, float], Image.Image]] = {
    "rotate": lambda warp, image, strength: image.rotate(30.0 * strength, warp.kernel, fillcolor=warp.fill),
    "shear_x": lambda warp, image, strength: warp.affine(image, 1.0, 0.3 * strength, 0.0, 0.0, 1.0, 0.0),
    "shear_y": lambda warp, image, strength: warp.affine(image, 1.0, 0.0, 0.0, 0.3 * strength, 1.0, 0.0),
    "translate_x": lambda warp, image, strength: warp.affine(
        image, 1.0, 0.0, 0.45 * strength * image.width, 0.0, 1.0, 0.0
    ),
    "translate_y": lambda warp, image, strength: warp.affine(
        image, 1.0, 0.0, 0.0, 0.0, 1.0, 0.45 * strength * image.height
    ),
}
OPERATIONS = (*_PLAIN, *_COLOR, *_GEOMETRY)


def apply_operation(name: str, image: Image.Image, strength: float, warp: Warp) -> Image.Image:
    """Apply one of RandAugment's operations.

    Args:
        name: One of ``OPERATIONS``.
        image: RGB.
        strength: Signed part of the largest change, -1 to 1; the sign matters where there are two directions.
        warp: How the operations that move pixels sample them.
    """
    if name in _PLAIN:
        return _PLAIN[name](image)
    return _COLOR[name](image, strength) if name in _COLOR else _GEOMETRY[name](warp, image, strength)


class RandAugment:
    """Apply a few random operations, each at a random strength, the same to all frames.

    Operations are drawn with replacement from fifteen, and each is applied with ``probability``. A magnitude of 10 is a
    rotation by 30 degrees, a shear by 0.3, a shift by 0.45 of the side, colour, contrast, brightness or sharpness times
    0.1 or 1.9, 0 bits kept of each colour, all pixels inverted, 110 added to the dark half of the range.

    Args:
        num_operations: Operations drawn (``n`` of ``rand-m7-n4-mstd0.5-inc1``).
        magnitude: Mean strength, 0 to 10 (``m``).
        magnitude_std: Standard deviation of the strength, which stays within 0 to 10 (``mstd``).
        probability: Of each drawn operation to be applied.
        interpolation: Kernel of rotation, shear and shift.
        fill: RGB colour of what they uncover.

    Raises:
        InputError: The magnitude is outside 0 to 10.

    Source: stage 1 fine-tuning, before the crop: 4 operations at 7 +- 0.5; probing: 2 at 5 +- 0.25. Cubuk et al.,
    "RandAugment", 2020, with every operation growing with the magnitude (``inc1``).
    """

    def __init__(
        self,
        num_operations: int = 4,
        *,
        magnitude: float = 7.0,
        magnitude_std: float = 0.5,
        probability: float = 0.5,
        interpolation: Interpolation = "bicubic",
        fill: tuple[int, int, int] = (128, 128, 128),
    ) -> None:
        if not 0 <= magnitude <= MAX_MAGNITUDE:
            raise InputError(f"magnitude={magnitude}: must be from 0 to {MAX_MAGNITUDE:g}")
        self.num_operations = num_operations
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.probability = probability
        self.warp = Warp(_KERNELS[interpolation], (fill[0], fill[1], fill[2]))

    def draw(self, generator: np.random.Generator) -> list[tuple[str, float]]:
        """Draw the operations to apply, in order, each with its signed strength from -1 to 1."""
        drawn = []
        for number in generator.integers(len(OPERATIONS), size=self.num_operations):
            applied = generator.uniform() < self.probability
            magnitude = min(max(generator.normal(self.magnitude, self.magnitude_std), 0.0), MAX_MAGNITUDE)
            sign = -1.0 if generator.uniform() < 1 / 2 else 1.0
            if applied:
                drawn.append((OPERATIONS[number], sign * magnitude / MAX_MAGNITUDE))
        return drawn

    def __call__(self, video: UInt8[Tensor, "T C H W"], generator: np.random.Generator) -> UInt8[Tensor, "T C H W"]:
        """Apply the same operations to every frame."""
        steps = self.draw(generator)

        def augment(image: Image.Image) -> Image.Image:
            for name, strength in steps:
                image = apply_operation(name, image, strength, self.warp)
            return image

        return _each_frame(video, augment) if steps else video


class ColorJitter:
    """Change brightness, contrast, saturation and hue by random amounts, in random order, the same in all frames.

    Args:
        brightness: Factors are drawn from ``1 - brightness`` (at least 0) to ``1 + brightness``.
        contrast: The same, around the frame's mean luminance.
        saturation: The same, around each pixel's own luminance.
        hue: Largest turn of the colour wheel either way, 0 to 0.5 of it.

    Raises:
        InputError: An amount is out of range.

    Source: option of stage 1 pretraining that no recipe switches on.
    """

    def __init__(
        self, *, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
    ) -> None:
        if min(brightness, contrast, saturation) < 0 or not 0 <= hue <= 1 / 2:
            raise InputError(
                f"brightness={brightness}, contrast={contrast}, saturation={saturation}, hue={hue}: "
                "none may be negative, and hue at most 0.5"
            )
        self.amounts: dict[type[_Enhancer], float] = {
            ImageEnhance.Brightness: brightness,
            ImageEnhance.Contrast: contrast,
            ImageEnhance.Color: saturation,
        }
        self.hue = hue

    def __call__(self, video: UInt8[Tensor, "T C H W"], generator: np.random.Generator) -> UInt8[Tensor, "T C H W"]:
        """Change every frame by the same amounts."""
        factors = {
            enhance: generator.uniform(max(1.0 - amount, 0.0), 1.0 + amount) for enhance, amount in self.amounts.items()
        }
        steps = [partial(_enhance, enhance, factor) for enhance, factor in factors.items() if self.amounts[enhance]]
        if self.hue:
            steps.append(partial(_turn_hue, int(255 * generator.uniform(-self.hue, self.hue))))
        order = [steps[number] for number in generator.permutation(len(steps))]

        def jitter(image: Image.Image) -> Image.Image:
            for step in order:
                image = step(image)
            return image

        return _each_frame(video, jitter) if order else video


def _each_frame(
    video: UInt8[Tensor, "T C H W"], change: Callable[[Image.Image], Image.Image]
) -> UInt8[Tensor, "T C H W"]:
    """Pass every frame through PIL; the result lies channels last in memory, as decoded clips do."""
    frames = video.permute(0, 2, 3, 1).contiguous().numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(frame))) for frame in frames])
    return torch.from_numpy(changed).permute(0, 3, 1, 2)


def _keep_bits(image: Image.Image, bits: int) -> Image.Image:
    """Keep the highest bits of every value; ``ImageOps.posterize`` refuses to keep none."""
    return image.point([value >> 8 - bits << 8 - bits for value in range(256)] * len(image.getbands()))


def _brighten_dark(image: Image.Image, amount: int) -> Image.Image:
    """Add to the values below 128, up to 255."""
    table = [min(255, value + amount) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(enhance: type[_Enhancer], factor: float, image: Image.Image) -> Image.Image:
    return enhance(image).enhance(factor)


def _turn_hue(amount: int, image: Image.Image) -> Image.Image:
    """Add to the hue, of which 256 steps are a full turn."""
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(step + amount) % 256 for step in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")

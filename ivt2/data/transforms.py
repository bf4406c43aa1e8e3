"""Clip transforms on uint8 pixels: the same random choice for all frames, normalisation left to the device.

A transform is called with a video [T, C, H, W] and the numpy generator of the sample, and draws from nothing else.
"""

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

Interpolation = Literal["bicubic", "bilinear"]


class Transform(Protocol):
    """A function of a clip and of the sample's own random generator."""

    def __call__(self, video: UInt8[Tensor, "T C H W"], generator: np.random.Generator) -> UInt8[Tensor, "T C h w"]:
        """Return the transformed clip."""


def resize(
    video: UInt8[Tensor, "T C H W"],
    height: int,
    width: int,
    *,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
) -> UInt8[Tensor, "T C height width"]:
    """Resample every frame; interpolated values are rounded and clamped to [0, 255].

    Args:
        video: Any memory layout; channels last (as decoders deliver) is fastest.
        height: Rows wanted, in pixels.
        width: Columns wanted, in pixels.
        interpolation: Kernel.
        antialias: Widen the kernel when shrinking. The reference's torchvision 0.14 did not do so for tensors.
    """
    if video.shape[-2:] == (height, width):
        return video
    if antialias:  # torch's uint8 kernel rounds between the two passes, as PIL does
        return functional.interpolate(video, (height, width), mode=interpolation, antialias=True)
    pixels = functional.interpolate(video.float(), (height, width), mode=interpolation, align_corners=False)
    return pixels.round().clamp(0, 255).to(video.dtype)


def view_corner(height: int, width: int, size: int, *, view: int = 0, num_views: int = 1) -> tuple[int, int]:
    """Top and left of one of ``num_views`` square crops spread along the longer side; a single one is centred.

    Args:
        height: Rows of the frame, at least ``size``.
        width: Columns of the frame, at least ``size``.
        size: Side of the crop, in pixels.
        view: Which crop.
        num_views: How many crops there are.

    Source: spatial views of the stage 1 test datasets.
    """
    spare = max(height, width) - size
    along = int(view * spare / (num_views - 1)) if num_views > 1 else spare // 2
    across = (min(height, width) - size) // 2
    return (along, across) if height > width else (across, along)


class Compose:
    """Transforms one after the other."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, video: UInt8[Tensor, "T C H W"], generator: np.random.Generator) -> UInt8[Tensor, "T C h w"]:
        """Apply all in order."""
        for transform in self.transforms:
            video = transform(video, generator)
        return video


class Resize:
    """Resize to a square whatever the aspect ratio, or the short side alone.

    Args:
        size: Side of the square, or length of the short side, in pixels.
        short_side: Keep the aspect ratio; the long side becomes int(size * long / short).
        interpolation: Kernel.
        antialias: See ``resize``.
    """

    def __init__(
        self, size: int, *, short_side: bool = False, interpolation: Interpolation = "bicubic", antialias: bool = True
    ) -> None:
        self.size = size
        self.short_side = short_side
        self.interpolation = interpolation
        self.antialias = antialias

    def __call__(self, video: UInt8[Tensor, "T C H W"], generator: np.random.Generator) -> UInt8[Tensor, "T C h w"]:  # noqa: ARG002
        """Resize every frame; draws nothing."""
        height, width = video.shape[-2:]
        rows = columns = self.size
        if self.short_side:
            short = min(height, width)
            rows, columns = self.size * height // short, self.size * width // short
        return resize(video, rows, columns, interpolation=self.interpolation, antialias=self.antialias)


class CenterCrop:
    """Cut a square out of the middle.

    Args:
        size: Side, in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, video: UInt8[Tensor, "T C H W"], generator: np.random.Generator) -> UInt8[Tensor, "T C h w"]:  # noqa: ARG002
        """Crop every frame; draws nothing.

        Raises:
            ValueError: The frame is smaller than the square.
        """
        height, width = video.shape[-2:]
        if min(height, width) < self.size:
            raise ValueError(f"cannot cut {self.size}x{self.size} pixels out of {height}x{width}: resize first")
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return video[..., top : top + self.size, left : left + self.size]


class RandomResizedCrop:
    """Cut a random box, of which area and aspect ratio are drawn, and resize it to a square.

    Ten boxes are tried; when none fits, the largest central box of an allowed aspect ratio is taken.

    Args:
        size: Side of the result, in pixels.
        scale: Smallest and largest part of the frame's area.
        ratio: Smallest and largest width / height; drawn on a logarithmic scale.
        interpolation: Kernel.
        antialias: See ``resize``.

    Source: stage 2 training uses scale (0.5, 1), bicubic; stage 1 fine-tuning (0.08, 1), bilinear.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.5, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bicubic",
        antialias: bool = True,
    ) -> None:
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.interpolation = interpolation
        self.antialias = antialias

    def box(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of the box within a frame of the given size."""
        for _ in range(10):
            area = height * width * generator.uniform(*self.scale)
            ratio = math.exp(generator.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                top = int(generator.integers(0, height - rows + 1))
                left = int(generator.integers(0, width - columns + 1))
                return top, left, rows, columns
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        columns, rows = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def __call__(self, video: UInt8[Tensor, "T C H W"], generator: np.random.Generator) -> UInt8[Tensor, "T C h w"]:
        """Cut the same box out of every frame."""
        top, left, rows, columns = self.box(video.shape[-2], video.shape[-1], generator)
        cut = video[..., top : top + rows, left : left + columns]
        return resize(cut, self.size, self.size, interpolation=self.interpolation, antialias=self.antialias)


class HorizontalFlip:
    """Mirror the whole clip left to right.

    Args:
        probability: Of a flip; 0 for data in which left and right differ (Something-Something).
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = probability

    def __call__(self, video: UInt8[Tensor, "T C H W"], generator: np.random.Generator) -> UInt8[Tensor, "T C h w"]:
        """Flip all frames or none."""
        return video.flip(-1) if generator.uniform() < self.probability else video

"""Clip transforms on uint8 pixels: the same random choice for all frames, normalisation left to the device.

A transform is called with a video [T, C, H, W] and the numpy generator of the sample, and draws from nothing else.
"""

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from ivt2.errors import InputError

Interpolation = Literal["bicubic", "bilinear"]

_CACHED_BYTES = 2**19  # of pixels resized at a time: a crop of more is copied out to memory and fetched again
_SNAP = 2  # pixels by which a side of a multi-scale crop may miss the size wanted and be set to it
# Down and right, in quarters of the room that a multi-scale crop leaves: a 3 x 3 grid and the points between.
_QUARTERS = [(down, right) for down in (0, 2, 4) for right in (0, 2, 4)]
_QUARTERS += [(down, right) for down in (1, 3) for right in (1, 3)]


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

    Rows and columns are resampled one after the other, and rounded in between as PIL does, except for bicubic without
    antialias, which is computed in floats.

    Args:
        video: Any memory layout; channels last (as decoders deliver) is fastest.
        height: Rows wanted, in pixels.
        width: Columns wanted, in pixels.
        interpolation: Kernel.
        antialias: Widen the kernel when shrinking. The reference's torchvision 0.14 did not do so for tensors.
    """
    if video.shape[-2:] == (height, width):
        return video
    if interpolation == "bicubic" and not antialias:  # torch's uint8 kernel is another cubic, off by up to 35 here
        pixels = functional.interpolate(video.float(), (height, width), mode=interpolation, align_corners=False)
        return pixels.round().clamp(0, 255).to(video.dtype)
    layout = torch.channels_last if video.stride(1) == 1 else torch.contiguous_format
    resized = torch.empty((*video.shape[:2], height, width), dtype=video.dtype, memory_format=layout)
    num_frames = max(1, _CACHED_BYTES // max(video[:1].numel(), 1))
    for begin in range(0, len(video), num_frames):
        piece = video[begin : begin + num_frames]
        pixels = functional.interpolate(piece, (height, width), mode=interpolation, antialias=antialias)
        resized[begin : begin + num_frames] = pixels
    return resized


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
        _check_fits(height, width, self.size)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return video[..., top : top + self.size, left : left + self.size]


class ViewCrop:
    """Cut one of several square views that are spread along the longer side: the crops of a multi-view test.

    Args:
        size: Side of the square, in pixels; ``Resize(size, short_side=True)`` before it makes the views span the frame.
        view: Which view, from 0 at the top or left.
        num_views: How many there are; a single one is centred.

    Source: stage 1 tests 3 views of the short side's length, without flips.
    """

    def __init__(self, size: int, *, view: int, num_views: int = 3) -> None:
        if not 0 <= view < num_views:
            raise InputError(f"view={view}: must be from 0 to {num_views - 1}, for num_views={num_views}")
        self.size = size
        self.view = view
        self.num_views = num_views

    def __call__(self, video: UInt8[Tensor, "T C H W"], generator: np.random.Generator) -> UInt8[Tensor, "T C h w"]:  # noqa: ARG002
        """Crop every frame; draws nothing.

        Raises:
            ValueError: The frame is smaller than the square.
        """
        height, width = video.shape[-2:]
        _check_fits(height, width, self.size)
        top, left = view_corner(height, width, self.size, view=self.view, num_views=self.num_views)
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


class MultiScaleCrop:
    """Cut a box with sides from a few scales of the short side, at one of 13 fixed places, and resize it to a square.

    Height and width are drawn together, each from ``scales``, at most ``max_distortion`` places apart in that list; a
    side within two pixels of ``size`` becomes ``size``, where the frame has room for it. The places are the nine of a
    3 x 3 grid (corners, middles of the edges, centre) and the four points halfway between centre and corners.

    Args:
        size: Side of the result, in pixels.
        scales: Sides of the box as parts of the frame's short side.
        max_distortion: Largest distance of height's and width's scale in ``scales``; 0 cuts squares alone.
        interpolation: Kernel.
        antialias: See ``resize``.

    Source: stage 1 pretraining; Wang et al., "Temporal Segment Networks", 2016.
    """

    def __init__(
        self,
        size: int,
        *,
        scales: Sequence[float] = (1.0, 0.875, 0.75, 0.66),
        max_distortion: int = 1,
        interpolation: Interpolation = "bilinear",
        antialias: bool = True,
    ) -> None:
        self.size = size
        self.scales = tuple(scales)
        self.max_distortion = max_distortion
        self.interpolation = interpolation
        self.antialias = antialias

    def shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the (rows, columns) that a box of a frame of the given size may have."""
        short = min(height, width)
        sides = [int(short * scale) for scale in self.scales]
        sides = [self.size if abs(side - self.size) <= _SNAP and self.size <= short else side for side in sides]
        return [
            (rows, columns)
            for i, rows in enumerate(sides)
            for j, columns in enumerate(sides)
            if abs(i - j) <= self.max_distortion
        ]

    def box(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of the box within a frame of the given size."""
        shapes = self.shapes(height, width)
        rows, columns = shapes[generator.integers(len(shapes))]
        down, right = _QUARTERS[generator.integers(len(_QUARTERS))]
        return down * ((height - rows) // 4), right * ((width - columns) // 4), rows, columns

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


def _check_fits(height: int, width: int, size: int) -> None:
    if min(height, width) < size:
        raise ValueError(f"cannot cut {size}x{size} pixels out of {height}x{width}: resize first")

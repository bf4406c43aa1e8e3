"""Random erasing of a batch on the device, drawn from the seeds of its samples."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from ivt2.ops.random import Stream, derive_seed, normal

_TRIES = 100


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def region(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def erased_box(
    seed: int,
    height: int,
    width: int,
    *,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Box | None:
    """Draw the box that one clip loses, or None.

    Args:
        seed: Key of the sample.
        height: Rows of a frame.
        width: Columns of a frame.
        probability: Of a box.
        area: Smallest and largest part of the frame.
        ratio: Smallest and largest height / width; drawn on a logarithmic scale.

    Returns:
        A box smaller than the frame in both directions; None too where a hundred tries give none.
    """
    generator = np.random.default_rng(derive_seed(seed, Stream.ERASING))
    if generator.uniform() >= probability:
        return None
    for _ in range(_TRIES):
        pixels = height * width * generator.uniform(*area)
        shape = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        rows, columns = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < rows < height and 0 < columns < width:
            top = int(generator.integers(0, height - rows + 1))
            return Box(top, int(generator.integers(0, width - columns + 1)), rows, columns)
    return None


def random_erasing(
    video: Float[Tensor, "B T C H W"],
    seed: Int64[Tensor, "B"],
    *,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Float[Tensor, "B T C H W"]:
    """Replace a box of some clips by noise from N(0, 1): the same box in all frames, other noise in each.

    What a clip loses depends on its own seed alone. The seeds are copied to the host once, where the boxes are drawn.

    Args:
        video: Normalised pixels.
        seed: Key of each sample, as in ``batch["seed"]``.
        probability: Of a clip to lose a box.
        area: Smallest and largest part of the frame.
        ratio: Smallest and largest height / width.

    Returns:
        A new tensor.

    Source: stage 1 fine-tuning and probing (mode ``pixel``, ``cube``). Zhong et al., "Random Erasing", 2017.
    """
    frames, channels, height, width = video.shape[1:]
    erased = video.clone()
    for index, key in enumerate(seed.tolist()):
        box = erased_box(key, height, width, probability=probability, area=area, ratio=ratio)
        if box is None:
            continue
        shape = (frames, channels, box.height, box.width)
        noise = normal(seed[index : index + 1], math.prod(shape), Stream.ERASING)
        erased[(index, ..., *box.region)] = noise.view(shape).to(video.dtype)
    return erased

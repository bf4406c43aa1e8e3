"""What transforms cost: uint8 clips as a whole, against frame after frame through PIL as the reference does it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ivt2.cli.benchmarks.clips import FPS
from ivt2.cli.benchmarks.timing import Cost, Figure, interleaved, speed_figure, timed

_IMAGE_SIZE = 224
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class TransformsSuite:
    """The transforms of stage 1 pretraining: multi-scale crop, resize, flip, and for PIL normalised floats.

    Args:
        sizes: height and width of the decoded frames in pixels; each is a measurement of its own.
        num_frames: of a clip.
        num_draws: clips of a turn, each with a box and a flip of its own.
        pairs: turns of each side.
    """

    def __init__(self, *, sizes: Sequence[Sequence[int]], num_frames: int, num_draws: int, pairs: int) -> None:
        self.sizes = [(height, width) for height, width in sizes]
        self.num_frames = num_frames
        self.num_draws = num_draws
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of all measurements."""
        return 2 * self.pairs * len(self.sizes)

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:  # noqa: ARG002
        """Yield the figures one by one."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a loader's worker
        try:
            for height, width in self.sizes:
                pixels = _moving(self.num_frames, height, width)
                comparison = interleaved(
                    partial(self._turn, _ours, pixels),
                    partial(self._turn, _reference, pixels),
                    pairs=self.pairs,
                    tick=tick,
                )
                yield speed_figure(
                    f"{height} x {width}, {self.num_frames} frames",
                    comparison,
                    sides=("ivt2", "PIL"),
                    items=self.num_draws,
                    clock="cpu",
                    floor=5.0,
                    aim=10.0,
                )
        finally:
            torch.set_num_threads(threads)

    def _turn(
        self, chain: "Callable[[NDArray[np.uint8], np.random.Generator], object]", pixels: NDArray[np.uint8]
    ) -> Cost:
        """Cost of the draws of a turn: the same boxes and flips whichever the chain."""
        chain(pixels, np.random.default_rng(0))

        def draws() -> None:
            for seed in range(self.num_draws):
                chain(pixels, np.random.default_rng(seed))

        return timed(draws)


def _moving(num_frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Pixels [T, H, W, 3] as a decoder delivers them."""
    rows, columns = np.mgrid[0:height, 0:width]
    phases = 2 * np.pi * np.arange(num_frames) / FPS
    waves = [np.sin(rows / 9 + phases[:, None, None] * turn + columns / (10 + turn)) for turn in (1, 2, 3)]
    return (127 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


def _ours(pixels: NDArray[np.uint8], generator: np.random.Generator) -> object:
    import torch

    from ivt2.data.transforms import HorizontalFlip, MultiScaleCrop

    video = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return HorizontalFlip()(MultiScaleCrop(_IMAGE_SIZE)(video, generator), generator)


def _reference(pixels: NDArray[np.uint8], generator: np.random.Generator) -> object:
    """Each frame cropped, resized and turned by PIL, then all of them, side by side as channels, normalised floats.

    Source: transform of stage 1 pretraining, spec stage1 section 2.8.
    """
    import torch
    from PIL import Image

    from ivt2.data.transforms import MultiScaleCrop

    top, left, rows, columns = MultiScaleCrop(_IMAGE_SIZE).box(pixels.shape[1], pixels.shape[2], generator)
    flipped = generator.uniform() < 0.5
    frames = []
    for frame in pixels:
        picture = Image.fromarray(frame).crop((left, top, left + columns, top + rows))
        picture = picture.resize((_IMAGE_SIZE, _IMAGE_SIZE), Image.Resampling.BILINEAR)
        frames.append(np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else picture))
    video = torch.from_numpy(np.concatenate(frames, axis=2)).permute(2, 0, 1).contiguous().float().div(255)
    for channel, mean, std in zip(video, _MEAN * len(frames), _STD * len(frames), strict=True):
        channel.sub_(mean).div_(std)
    return video.view(len(frames), 3, _IMAGE_SIZE, _IMAGE_SIZE)

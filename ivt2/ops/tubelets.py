"""Clips cut into tubelets, the boxes of pixels that one token covers, and what a masked autoencoder says about them."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def cut_tubelets(
    video: Shaped[Tensor, "B T C H W"], *, tubelet_size: int, patch_size: int
) -> Shaped[Tensor, "B N box C"]:
    """Pixels of each tubelet; tubelets stand by frame, row and column of the grid, pixels by those of their box.

    Args:
        video: Pixels; tubelets and patches divide it.
        tubelet_size: Frames that one tubelet covers.
        patch_size: Side of a tubelet in pixels.
    """
    clips, num_frames, channels, height, width = video.shape
    grid = (num_frames // tubelet_size, height // patch_size, width // patch_size)
    boxes = video.reshape(clips, grid[0], tubelet_size, channels, grid[1], patch_size, grid[2], patch_size)
    return boxes.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4, 6).flatten(1, 3)


def normalize_tubelets(boxes: Float[Tensor, "*batch box C"], *, eps: float) -> Float[Tensor, "*batch box C"]:
    """``(x - mean) / sqrt(variance + eps)``, with mean and variance of each channel of each tubelet by itself.

    Args:
        boxes: Pixels of tubelets, see ``cut_tubelets``.
        eps: Added to the variance, in squared units of the pixels. It decides from which contrast on a tubelet counts:
            one that is flat but for the noise of a codec has a target near 0 where eps is larger than that noise.

    Source: He et al., "Masked autoencoders are scalable vision learners" (arXiv:2111.06377) section 4.1; by channel as
        in VideoMAE.
    """
    centred = boxes - boxes.mean(dim=-2, keepdim=True)
    variance = centred.square().mean(dim=-2, keepdim=True)
    normalized: Tensor = centred * torch.rsqrt(variance + eps)
    return normalized

"""From pixels to patch tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ivt2.errors import InputError
from ivt2.ops.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize_pixels


class PatchEmbed(nn.Module):
    """Linear projection of each ``tubelet_size x patch_size x patch_size`` box of pixels.

    The weights are those of a convolution whose stride is its kernel; since boxes do not overlap, it is computed as one
    matrix product, over those boxes alone that are asked for.

    Args:
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames in a box.
        embed_dim: Width of a token.
        mean: Mean of each channel of the pixels in [0, 1].
        std: Standard deviation of each channel.
    """

    def __init__(
        self,
        *,
        patch_size: int,
        tubelet_size: int,
        embed_dim: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(3, embed_dim, kernel_size=kernel, stride=kernel)

    def forward(
        self,
        video: Float[Tensor, "B T 3 H W"] | UInt8[Tensor, "B T 3 H W"],
        visible: Int64[Tensor, "B Nv"] | None = None,
    ) -> Float[Tensor, "B Nv D"]:
        """Tokens by frame, then row, then column; the one place that permutes the video.

        Args:
            video: RGB pixels 0 to 255 as uint8, or floats that are normalised already.
            visible: Positions of the boxes that are wanted; None for all.
        """
        weight = self.proj.weight
        boxes = normalize_pixels(cut_boxes(video, weight.shape[2:], visible), self.mean, self.std)
        return functional.linear(boxes.flatten(2).to(weight.dtype), weight.flatten(1), self.proj.bias)


def cut_boxes(
    video: Shaped[Tensor, "B T C H W"], size: Sequence[int], visible: Int64[Tensor, "B Nv"] | None = None
) -> Shaped[Tensor, "B Nv C tubelet rows columns"]:
    """Boxes of pixels, side by side.

    Args:
        video: Pixels of any kind.
        size: Frames, rows and columns of a box, which divide those of the video.
        visible: Positions of the boxes that are wanted, by frame, then row, then column; None for all.
    """
    batch, num_frames, channels, height, width = video.shape
    frames, rows, columns = size
    grid = (num_frames // frames, height // rows, width // columns)
    boxes = video.reshape(batch, grid[0], frames, channels, grid[1], rows, grid[2], columns)
    boxes = boxes.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(1, 3)
    if visible is None:
        return boxes
    return boxes[torch.arange(batch, device=video.device).unsqueeze(1), visible]


def check_grid(*, image_size: int, patch_size: int, num_frames: int, tubelet_size: int) -> None:
    """Refuse clips that boxes of pixels cannot fill.

    Raises:
        InputError: if the side is no multiple of the patch's, or the frames are none of the tubelet's.
    """
    for name, value, of_name, of_value in (
        ("image_size", image_size, "patch_size", patch_size),
        ("num_frames", num_frames, "tubelet_size", tubelet_size),
    ):
        if value < 1 or of_value < 1 or value % of_value:
            raise InputError(f"{name}={value} is not a multiple of {of_name}={of_value}: choose one that is")


def inflate_patch_kernel(
    weight: Float[Tensor, "D C kernel kernel"] | Float[Tensor, "D C 1 kernel kernel"],
    tubelet_size: int,
    *,
    center: bool,
) -> Float[Tensor, "D C tubelet_size kernel kernel"]:
    """Spread a kernel for single frames over the frames of a tubelet.

    Args:
        weight: Kernel of an image model, or of a video model with tubelet size 1.
        tubelet_size: Frames wanted.
        center: Whether the middle frame (``tubelet_size // 2``) gets all and the others zero; otherwise each frame
            gets an equal share, which gives the image model's tokens on a still clip. (So does the middle.)

    Raises:
        InputError: if there is no frame to spread over.

    Source: reference single_modality, run_finetuning.py (``--center_init``).
    """
    if tubelet_size < 1:
        raise InputError(f"tubelet_size={tubelet_size} holds no frame: use 1 or more")
    frame = weight.unsqueeze(2) if weight.ndim == 4 else weight
    if not center:
        return frame.repeat(1, 1, tubelet_size, 1, 1) / tubelet_size
    inflated = torch.zeros_like(frame).repeat(1, 1, tubelet_size, 1, 1)
    inflated[:, :, tubelet_size // 2] = frame[:, :, 0]
    return inflated

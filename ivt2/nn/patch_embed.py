"""From pixels to patch tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivt2.errors import InputError


class PatchEmbed(nn.Module):
    """Linear projection of each ``tubelet_size x patch_size x patch_size`` box of pixels.

    Args:
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames in a box.
        embed_dim: Width of a token.
    """

    def __init__(self, *, patch_size: int, tubelet_size: int, embed_dim: int) -> None:
        super().__init__()
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(3, embed_dim, kernel_size=kernel, stride=kernel)

    def forward(self, video: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B tubelets patches D"]:
        """Tokens by frame, then row, then column; the one place that permutes the video."""
        grid: Tensor = self.proj(video.to(self.proj.weight.dtype).transpose(1, 2))
        return grid.flatten(3).permute(0, 2, 3, 1)


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

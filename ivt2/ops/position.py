"""Position tables: sines and cosines to start from, and the one routine that resizes learned ones.

Tables have a leading 1 where they are parameters; rows run frame by frame, row by row, then column by column, and a
CLS row, where there is one, stands first.
"""

import math

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from ivt2.errors import InputError


def sincos_1d(dim: int, num_positions: int) -> Float32[Tensor, "P D"]:
    """Sines and cosines of positions 0, 1, ...: ``[sin(p w_i) | cos(p w_i)]`` with ``w_i = 10000 ** (-i / (dim / 2))``.

    Args:
        dim: Width, even; the halves stand one after the other, not interleaved.
        num_positions: Number of rows.

    Raises:
        InputError: if the width is odd.
    """
    angles = _angles(dim, num_positions)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_2d(dim: int, grid_size: int) -> Float32[Tensor, "N D"]:
    """Table of a square grid: half of the width encodes the column x, the other half the row y.

    Args:
        dim: Width, a multiple of 4.
        grid_size: Patches along one side.

    Raises:
        InputError: if the width does not divide.

    Source: reference pos_embed.py; its first half is named after the height but encodes the width.
    """
    if dim % 4:
        raise InputError(f"width {dim} cannot hold a 2-D position table: use a multiple of 4")
    line = sincos_1d(dim // 2, grid_size)
    column = line.repeat(grid_size, 1)
    row = line.repeat_interleave(grid_size, dim=0)
    return torch.cat([column, row], dim=1)


def sincos_3d(dim: int, num_frames: int, grid_size: int) -> Float32[Tensor, "rows D"]:
    """Joint table of a clip with a CLS row of zeros: ``[time: dim / 4 | x: 3 dim / 8 | y: 3 dim / 8]``.

    Args:
        dim: Width, a multiple of 16.
        num_frames: Temporal positions.
        grid_size: Patches along one side.

    Returns:
        1 + num_frames * grid_size ** 2 rows.

    Raises:
        InputError: if the width does not divide.
    """
    if dim % 16:
        raise InputError(f"width {dim} cannot hold a 3-D position table: use a multiple of 16")
    time = sincos_1d(dim // 4, num_frames).repeat_interleave(grid_size**2, dim=0)
    space = sincos_2d(dim * 3 // 4, grid_size).repeat(num_frames, 1)
    patches = torch.cat([time, space], dim=1)
    return functional.pad(patches, (0, 0, 1, 0))


def sinusoid_interleaved(dim: int, num_positions: int) -> Float32[Tensor, "P D"]:
    """VideoMAE's fixed table over flat positions: channel 2i is ``sin(p w_i)``, channel 2i + 1 is ``cos(p w_i)``.

    Args:
        dim: Width, even.
        num_positions: Number of rows.

    Raises:
        InputError: if the width is odd.
    """
    angles = _angles(dim, num_positions)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()


def _angles(dim: int, num_positions: int) -> Tensor:
    if dim % 2:
        raise InputError(f"width {dim} cannot hold sines and cosines: use an even number")
    half = dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.outer(torch.arange(num_positions, dtype=torch.float64), frequency)


def join_separable(
    cls: Float[Tensor, "1 prefix D"], spatial: Float[Tensor, "1 patches D"], temporal: Float[Tensor, "1 T D"]
) -> Float[Tensor, "1 rows D"]:
    """Joint table of prefix + T * patches rows: each patch gets the sum of its place's and its frame's row.

    Args:
        cls: Row of the CLS token, or no row.
        spatial: One row for each patch of a frame.
        temporal: One row for each frame.
    """
    patches = temporal.unsqueeze(2) + spatial.unsqueeze(1)
    return torch.cat([cls, patches.flatten(1, 2)], dim=1)


def average_frames(
    table: Float[Tensor, "1 rows D"], num_frames: int, *, num_prefix: int = 1
) -> Float[Tensor, "1 image_rows D"]:
    """Table for images from that for clips: mean over the frames, the leading rows as they are.

    Args:
        table: Joint table.
        num_frames: Temporal positions in it.
        num_prefix: Leading rows, such as the CLS row.

    Source: reference multi_modality, image mode without separate image table.
    """
    prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
    return torch.cat([prefix, torch.unflatten(patches, 1, (num_frames, -1)).mean(dim=1)], dim=1)


def resize_position_table(
    table: Float[Tensor, "1 rows D"], *, source_frames: int, num_frames: int, grid_size: int, num_prefix: int = 1
) -> Float[Tensor, "1 resized_rows D"]:
    """Resize a learned table: linear over time, then bicubic in each frame; leading rows stay as they are.

    Serves every kind: joint tables, tables for one image (``source_frames=1, num_frames=1``), the spatial part of
    separable ones (the same with ``num_prefix=0``) and the temporal part (``grid_size=1, num_prefix=0``).

    Args:
        table: Rows of a square grid for each frame, after the leading rows.
        source_frames: Temporal positions in the table.
        num_frames: Temporal positions wanted.
        grid_size: Patches along one side wanted.
        num_prefix: Leading rows, such as the CLS row.

    Returns:
        num_prefix + num_frames * grid_size ** 2 rows in the dtype of the table; computed in float32.

    Raises:
        InputError: if the rows are not those of ``source_frames`` square grids.

    Source: reference single_modality, interpolation in run_finetuning.py (no antialias, align_corners False).
    """
    source_grid = _source_grid(table.shape[1] - num_prefix, source_frames)
    prefix, patches = table[:, :num_prefix], table[0, num_prefix:].float()
    patches = torch.unflatten(patches, 0, (source_frames, source_grid**2))
    if num_frames != source_frames:
        patches = functional.interpolate(patches.permute(1, 2, 0), size=num_frames, mode="linear").permute(2, 0, 1)
    if grid_size != source_grid:
        frames = torch.unflatten(patches, 1, (source_grid, source_grid)).permute(0, 3, 1, 2)
        frames = functional.interpolate(frames, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
        patches = frames.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([prefix, patches.flatten(0, 1).unsqueeze(0).to(table.dtype)], dim=1)


def _source_grid(num_rows: int, source_frames: int) -> int:
    grid = math.isqrt(max(num_rows, 0) // source_frames)
    if grid == 0 or source_frames * grid**2 != num_rows:
        raise InputError(
            f"a position table of {num_rows} patch rows does not hold {source_frames} square frames: "
            "state the number of frames that the weights were trained with"
        )
    return grid

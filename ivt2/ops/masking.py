"""Which visual tokens are hidden from the encoder, and how the visible ones are picked.

A mask is Bool[B, N] over patches alone, True where hidden; every row hides the same number.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from ivt2.errors import InputError

Masking = Literal["attention", "tube", "random"]


def random_masking(noise: Float[Tensor, "B N"], ratio: float) -> Bool[Tensor, "B N"]:
    """Hide ``int(ratio * N)`` patches of the whole clip: those with the smallest noise.

    Args:
        noise: Uniform draws, one for each patch.
        ratio: Share of hidden patches in [0, 1).

    Returns:
        True where a patch is hidden.

    Raises:
        InputError: if the ratio is outside [0, 1).

    Source: reference multi_modality, mask type "random" (int() truncates: 819 of 1024 patches at 0.8).
    """
    check_mask_ratio(ratio)
    order = noise.argsort(dim=1, stable=True)
    hidden = order[:, : int(ratio * noise.shape[1])]
    return torch.zeros_like(noise, dtype=torch.bool).scatter(1, hidden, True)


def tube_masking(noise: Float[Tensor, "B patches"], ratio: float, num_frames: int) -> Bool[Tensor, "B N"]:
    """Hide ``int(ratio * patches)`` patches of a frame, the same in each frame.

    Args:
        noise: Uniform draws, one for each patch of one frame.
        ratio: Share of hidden patches in [0, 1).
        num_frames: Temporal positions of the clip (frames divided by the tubelet size).

    Returns:
        True where a patch is hidden, N = num_frames * patches, frame by frame.

    Raises:
        InputError: if the ratio is outside [0, 1).
    """
    return random_masking(noise, ratio).repeat(1, num_frames)


def attention_masking(
    attention: Float[Tensor, "B *frames patches"], noise: Float[Tensor, "B *frames patches"], ratio: float
) -> Bool[Tensor, "B N"]:
    """Hide ``int(patches * ratio)`` patches of each frame, or of each clip, those that a teacher hardly attends to.

    What stays visible is a draw without replacement in proportion to the attention: the patches with the largest
    ``attention / noise``. A patch without any attention is drawn last and never an error.

    Args:
        attention: Non-negative weight of each patch, of any scale: [B, frames, patches] to draw in each frame by itself
            (pre-training), [B, N] to draw in the clip as a whole (distillation).
        noise: Exponential draws of rate 1, such as ``-log(1 - u)`` of uniform u.
        ratio: Share of hidden patches in [0, 1).

    Returns:
        True where a patch is hidden, frame by frame.

    Raises:
        InputError: if the ratio is outside [0, 1).

    Source: reference single_modality, mask type "attention": ``torch.multinomial``, which divides by exponential noise
        as well (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).
    """
    check_mask_ratio(ratio)
    wide = attention.to(noise.dtype)
    # Zero weights still need an order among themselves, and 0 / 0 must not arise.
    score = wide.clamp_min(torch.finfo(wide.dtype).tiny) / noise
    num_patches = attention.shape[-1]
    hidden = score.argsort(dim=-1, descending=True, stable=True)[..., num_patches - int(num_patches * ratio) :]
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, hidden, True).flatten(1)


def draw_mask(
    masking: Masking,
    noise: Float[Tensor, "B N"],
    ratio: float,
    num_frames: int,
    attention: Float[Tensor, "rows patches"] | None = None,
) -> Bool[Tensor, "B N"]:
    """Hide a share of the patches in one of the ways of this module.

    Args:
        masking: Which way.
        noise: Uniform draws in [0, 1), one for each patch, frame by frame; ``tube`` uses those of the first frame.
        ratio: Share of hidden patches in [0, 1).
        num_frames: Temporal positions of the clip (frames divided by the tubelet size).
        attention: Of a teacher that saw the clips, see ``teacher_masking``; for ``attention`` alone.
    """
    if masking == "tube":
        return tube_masking(noise[:, : noise.shape[1] // num_frames], ratio, num_frames)
    if masking == "random":
        return random_masking(noise, ratio)
    assert attention is not None, "whoever masks by attention asks a teacher that has some"
    return teacher_masking(attention, noise, ratio)


def teacher_masking(
    attention: Float[Tensor, "rows patches"], noise: Float[Tensor, "B N"], ratio: float
) -> Bool[Tensor, "B N"]:
    """``attention_masking`` by what a teacher attends to: one that looks at single frames has a row for each of them.

    Args:
        attention: Rows of each clip, one after the other; together they cover its patches.
        noise: Uniform draws in [0, 1), one for each patch.
        ratio: Share of hidden patches in [0, 1).
    """
    weights = attention.reshape(len(noise), noise.shape[1] // attention.shape[1], attention.shape[1])
    return attention_masking(weights, -torch.log1p(-noise).view_as(weights), ratio)


def check_mask_ratio(ratio: float) -> None:
    """Refuse a ratio that hides everything or means nothing.

    Raises:
        InputError: if the ratio is outside [0, 1).
    """
    if ratio == 1:
        raise InputError("mask ratio 1.0 hides everything: use a ratio in [0, 1), such as 0.8")
    if not 0 <= ratio < 1:
        raise InputError(f"mask ratio {ratio} is not a share: use a ratio in [0, 1), such as 0.8")


def num_visible(num_patches: int, ratio: float) -> int:
    """How many of so many patches the maskings of this module leave visible.

    Args:
        num_patches: Of which a share is hidden: of a clip, or of a frame where each frame hides its own.
        ratio: Share of hidden patches in [0, 1).
    """
    return num_patches - int(num_patches * ratio)


def visible_indices(masked: Bool[Tensor, "B N"], num_visible: int | None = None) -> Int64[Tensor, "B Nv"]:
    """Positions of the visible patches of each clip, ascending.

    Args:
        masked: True where a patch is hidden; every row hides the same number, and not all.
        num_visible: Number of visible patches, from whoever knows it: then nothing is checked, and nobody waits for
            the device to count them.

    Returns:
        Positions; for an empty batch, whose number of visible patches nobody knows, those of zero patches.

    Raises:
        ValueError: if rows hide different numbers of patches, or a row hides all.
    """
    if num_visible is None:
        num_visible = _count_visible(masked)
    return masked.to(torch.uint8).argsort(dim=1, stable=True)[:, :num_visible]


def _count_visible(masked: Tensor) -> int:
    counts = set((~masked).sum(dim=1).tolist())
    if not counts:
        return 0
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"each clip of a batch must show the same number of patches and at least one, not {counts}")
    return int(counts.pop())


def gather_rows(
    table: Shaped[Tensor, "1 N D"], index: Int64[Tensor, "B Nv"] | None
) -> Shaped[Tensor, "B Nv D"] | Shaped[Tensor, "1 N D"]:
    """Rows of a table that all clips share, at the given positions of each; all of it where there are none.

    Args:
        table: A row for each position.
        index: Positions in [0, N).
    """
    return table if index is None else functional.embedding(index, table.squeeze(0))


def gather_tokens(tokens: Shaped[Tensor, "B N D"], index: Int64[Tensor, "B Nv"]) -> Shaped[Tensor, "B Nv D"]:
    """Tokens at the given positions of each clip, in the order of the positions.

    Args:
        tokens: Tokens of each clip.
        index: Positions in [0, N).
    """
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

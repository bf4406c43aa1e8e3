"""Cosine similarity of features and its dual-softmax form; no temperature in either.

Letters: N, M numbers of features, P, R parts of a feature (frames of a clip, prompts of a class), D width.
"""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

Temperature: TypeAlias = float | Float[Tensor, ""] | Float[Tensor, "1"]
"""A divisor of cosine similarities: a number, a scalar parameter, or a parameter with one element."""


def cosine_similarity(
    a: Float[Tensor, "N *P D"], b: Float[Tensor, "M *R D"], *, parts: Literal["mean", "max"] = "mean"
) -> Float[Tensor, "N M"]:
    """Cosine of each pair of features, in single precision or better whatever surrounds the call.

    Features may come in parts (one more dimension): each part is brought to unit length, and the cosines of all pairs
    of parts are reduced to one number.

    Args:
        a: features, ``[N, D]`` or ``[N, P, D]``.
        b: features, ``[M, D]`` or ``[M, R, D]``.
        parts: mean or max over the parts.

    Source: reference ``get_sim`` of the stage-2 criteria.
    """
    # Half precision makes ties of close similarities, and autocast would bring it back.
    with torch.autocast(a.device.type, enabled=False):
        a, b = _unit(a), _unit(b)
        if a.ndim == b.ndim == 2:
            return a @ b.T
        a, b = (x.unsqueeze(1) if x.ndim == 2 else x for x in (a, b))
        if parts == "mean":
            return a.mean(1) @ b.mean(1).T
        return torch.einsum("npd,mrd->nmpr", a, b).amax(dim=(2, 3))


def chunked_similarity(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"], chunk: int = 1024) -> Float[Tensor, "N M"]:
    """Cosine of each pair of features, computed where the features are and collected in main memory.

    Args:
        a: features of the rows.
        b: features of the columns.
        chunk: rows computed at a time; bounds what the features' device must hold to ``chunk * M`` numbers.
    """
    rows = [cosine_similarity(part, b).cpu() for part in torch.split(a, chunk)]
    return torch.cat(rows)


def dual_softmax(similarity: Float[Tensor, "N M"], dim: int = 0) -> Float[Tensor, "N M"]:
    """``S * softmax(S, dim)``: lower what many queries are close to.

    Args:
        similarity: raw cosines.
        dim: the dimension of the queries, over which they compete; 0 where rows rank columns.

    Source: CAMoE (arXiv:2109.04290); the reference applies it without its temperature of 1/100.
    """
    return similarity * similarity.softmax(dim=dim)


def _unit(x: Tensor) -> Tensor:
    return normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)

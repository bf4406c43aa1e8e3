"""Distance between a student's features and a teacher's (UTA, and the alignment terms of stage 1)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ivt2.ops.fused import cosine


def feature_alignment_loss(
    student: Float[Tensor, "*rows D"],
    teacher: Float[Tensor, "*rows D"],
    *,
    distance: Literal["l2", "mse", "smooth_l1"] = "l2",
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """Mean distance between paired features, in single precision or better.

    ``l2`` is the mean over rows of ``2 - 2 <s, t>``, the squared distance of unit vectors; ``mse`` and ``smooth_l1``
    average over rows and channels.

    Args:
        student: features; any leading dimensions (layers, clips, tokens).
        teacher: targets of the same shape; no gradient is taken through them.
        distance: see above.
        normalize: bring both to unit length first; False where a decoder has done so.

    Source: InternVideo2 (arXiv:2403.15377) section 3.1; reference ``UTA_Loss``.
    """
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if distance == "l2" and normalize:
        each = 2 - 2 * cosine(student, teacher)
        return each.sum() / max(each.numel(), 1)
    if normalize:
        student, teacher = functional.normalize(student, dim=-1), functional.normalize(teacher, dim=-1)
    if distance == "l2":
        each = 2 - 2 * (student * teacher).sum(dim=-1)
    elif distance == "mse":
        each = functional.mse_loss(student, teacher, reduction="none")
    else:
        each = functional.smooth_l1_loss(student, teacher, reduction="none")
    return each.sum() / max(each.numel(), 1)


def two_level_alignment_loss(
    middle: tuple[Float[Tensor, "K B N D"], Float[Tensor, "K B N D"]],
    final: tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]] | None,
    *,
    ratios: tuple[float, float] = (1.0, 1.0),
) -> Float[Tensor, ""]:
    """Weighted sum of the ``l2`` distances of the aligned layers' tokens and of the final features.

    Args:
        middle: student's and teacher's tokens of K layers, both of unit length.
        final: student's and teacher's pooled features, both of unit length; None leaves the term out.
        ratios: weights of the two terms.

    Source: reference ``new_UTA_Loss`` with ``clip_loss_ratio`` and ``distill_final_features``. There the result has
    shape [1] instead of [] when the final term is off; here it is always a scalar.
    """
    loss = ratios[0] * feature_alignment_loss(*middle, normalize=False)
    if final is not None:
        loss = loss + ratios[1] * feature_alignment_loss(*final, normalize=False)
    return loss

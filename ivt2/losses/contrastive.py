"""Contrastive loss between two sets of features whose rows belong together (VTC, and the other pairs of modalities)."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from ivt2.ops.similarity import Temperature, cosine_similarity


def contrastive_targets(
    ids: Int64[Tensor, "N"] | None, num: int, *, device: torch.device | None = None
) -> Float[Tensor, "N N"]:
    """Distribution over the positives of each row: uniform over the rows of equal id.

    Args:
        ids: identity of the clip of each row, or None where all differ.
        num: number of rows N.
        device: where the targets go when there are no ids.

    Source: reference ``get_mask(normalize=True)`` of the stage-2 criteria.
    """
    if ids is None:
        return torch.eye(num, device=device)
    same = (ids[:, None] == ids[None, :]).float()
    return same / same.sum(dim=1, keepdim=True)


def contrastive_loss(
    visual: Float[Tensor, "N *parts D"],
    text: Float[Tensor, "N *other_parts D"],
    temperature: Temperature,
    ids: Int64[Tensor, "N"] | None = None,
    *,
    parts: Literal["mean", "max"] = "mean",
) -> Float[Tensor, ""]:
    """Mean of both directions' cross-entropy between ``softmax(cos(v, t) / temperature)`` and the targets.

    Args:
        visual: features of one modality, of any length; over all ranks if the loss is to be the global one.
        text: features of the other modality, row by row.
        temperature: divisor of the cosines, > 0; its range is the model's business.
        ids: rows of equal id are positives of each other; None where all differ.
        parts: how cosines of features in several parts (frames, prompts) become one.

    Source: InternVideo2 (arXiv:2403.15377) section 3.2, ``L_con``; reference ``vtc_loss``.
    """
    similarity = cosine_similarity(visual, text, parts=parts)
    num = len(similarity)
    targets = contrastive_targets(ids, num, device=similarity.device).to(similarity.dtype)
    with torch.autocast(similarity.device.type, enabled=False):
        logits = similarity / temperature
        total = sum(cross_entropy(scores, targets, reduction="sum") for scores in (logits, logits.T))
        return torch.as_tensor(total) / (2 * max(num, 1))

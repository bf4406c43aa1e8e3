"""Sigmoid loss: each pair of a clip and a caption is a question of its own, whether the two belong together.

Letters: b pairs of this rank, n pairs of all ranks together, c rows of a chunk, D width.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import softplus

from ivt2.ops.distributed import all_gather, global_mean
from ivt2.ops.pairwise import ids_or_own, pairwise_sum, unit_rows
from ivt2.ops.similarity import Temperature


def sigmoid_loss(
    visual: Float[Tensor, "b *parts D"],
    text: Float[Tensor, "b *other_parts D"],
    temperature: Temperature,
    bias: float | Float[Tensor, ""] | Float[Tensor, "1"],
    ids: Int64[Tensor, "b"] | None = None,
    *,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """This rank's share of ``-1/n sum_ij log sigmoid(z_ij (cos(v_i, t_j) / temperature + bias))``; all ranks call it.

    ``z_ij`` is 1 where clip i and caption j have equal ids, else -1. The sum over all n * n pairs is divided by the
    number n of clips of the global batch, not by the number of pairs; each of several positives counts whole. The mean
    over ranks is the loss of the global batch, and the gradient averaged over ranks is its true one, those of
    temperature and bias too. Ranks may have different numbers of pairs, or none.

    Args:
        visual: features of one modality, of any length, on this rank.
        text: features of the other modality, row by row.
        temperature: divisor of the cosines, > 0; the paper starts at 0.1.
        bias: added to the logits; the paper starts at -10, so that the many negatives cost little at first.
        ids: rows of equal id, on whichever rank, are positives of each other; None where all differ.
        chunk: rows compared with the n columns at a time, at least 1; None takes the b rows of the rank at once.

    Source: SigLIP (arXiv:2303.15343) section 3.2 and algorithm 1.
    """
    rows, columns = unit_rows(visual), unit_rows(text)
    ids = ids_or_own(ids, rows)
    all_ids, all_columns = all_gather(ids), all_gather(columns)
    scaled = rows / torch.as_tensor(temperature).to(rows)
    offset = torch.as_tensor(bias).to(rows).reshape(())
    total = pairwise_sum(scaled, all_columns, ids, all_ids, _binary_cross_entropy, bias=offset, chunk=chunk)
    return global_mean(total, len(rows))


def _binary_cross_entropy(logits: Float[Tensor, "c n"], positive: Bool[Tensor, "c n"]) -> Float[Tensor, ""]:
    """Sum over pairs; leaves sigmoid minus targets in the logits."""
    # By sign, not by difference: both value and gradient of a pair that is almost right stay exact.
    sign = positive.to(logits.dtype).mul_(-2).add_(1)
    logits *= sign
    total = softplus(logits).sum()
    logits.sigmoid_().mul_(sign)
    return total

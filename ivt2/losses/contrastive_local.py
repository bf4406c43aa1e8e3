"""The contrastive loss over all ranks, of which each computes its own rows only and never holds the global matrix.

Letters: b pairs of this rank, n pairs of all ranks together, c rows of a chunk, D width.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ivt2.ops.distributed import all_gather, global_mean
from ivt2.ops.pairwise import ids_or_own, pairwise_sum, unit_rows
from ivt2.ops.similarity import Temperature


def local_contrastive_loss(
    visual: Float[Tensor, "b *parts D"],
    text: Float[Tensor, "b *other_parts D"],
    temperature: Temperature,
    ids: Int64[Tensor, "b"] | None = None,
    *,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """This rank's share of `contrastive_loss` over the pairs of all ranks; every rank must call it.

    The mean over ranks is the loss of the global batch, and the parameter gradient averaged over ranks is its true
    gradient, that of the temperature too. With one process it is the loss itself. Ranks may have different numbers of
    pairs, or none. Features in parts are compared by the mean of their parts' cosines.

    Args:
        visual: features of one modality, of any length, on this rank.
        text: features of the other modality, row by row.
        temperature: divisor of the cosines, > 0.
        ids: rows of equal id, on whichever rank, are positives of each other; None where all differ.
        chunk: rows compared with the n columns at a time, at least 1; None takes the b rows of the rank at once.

    Source: InternVideo2 (arXiv:2403.15377) section 3.2, ``L_con``; local rows as in OpenCLIP's ``local_loss``.
    """
    rows, columns = unit_rows(visual), unit_rows(text)
    ids = ids_or_own(ids, rows)
    all_ids, all_rows, all_columns = all_gather(ids), all_gather(rows), all_gather(columns)
    divisor = torch.as_tensor(temperature).to(rows)
    total = softmax_rows(rows / divisor, all_columns, ids, all_ids, chunk=chunk)
    total = total + softmax_rows(columns / divisor, all_rows, ids, all_ids, chunk=chunk)
    return global_mean(total / 2, len(rows))


def softmax_rows(
    queries: Float[Tensor, "b D"],
    keys: Float[Tensor, "n D"],
    query_ids: Int64[Tensor, "b"],
    key_ids: Int64[Tensor, "n"],
    *,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Sum of the rows' cross-entropy between ``softmax(queries @ keys.T)`` and the uniform choice of a positive.

    Args:
        queries: unit features over temperature.
        keys: unit features of all ranks; each query has a positive among them.
        query_ids: identity of each row.
        key_ids: identity of each column.
        chunk: rows at a time, see `local_contrastive_loss`.
    """
    return pairwise_sum(queries, keys, query_ids, key_ids, _cross_entropy, chunk=chunk)


def _cross_entropy(logits: Float[Tensor, "c n"], positive: Bool[Tensor, "c n"]) -> Float[Tensor, ""]:
    """Sum over rows; leaves softmax minus targets in the logits."""
    targets = positive.to(logits.dtype)
    targets /= targets.sum(dim=1, keepdim=True)
    logits -= logits.logsumexp(dim=1, keepdim=True)
    total = -(targets * logits).sum()
    logits.exp_().sub_(targets)
    return total

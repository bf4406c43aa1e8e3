"""Matching loss (VTM): which clip and caption belong together, judged on pairs that contrast finds hard.

Mining works on the samples of one rank. Everything random is an argument, so that a sample's negatives do not depend on
generator state.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from ivt2.ops.similarity import Temperature, cosine_similarity

IGNORED = -100
"""Label of a pair that takes no part in the loss."""


class Negatives(NamedTuple):
    """One wrong clip and one wrong caption for each sample, as row numbers."""

    vision: Int64[Tensor, "B"]
    text: Int64[Tensor, "B"]
    valid: Bool[Tensor, "B"]
    """False where every other sample has the same id, so that no wrong one exists; the rows then name themselves."""


class MatchingPairs(NamedTuple):
    """Pairs to be judged: all B positives, then wrong clip with own caption, then own clip with wrong caption."""

    vision: Int64[Tensor, "P"]
    text: Int64[Tensor, "P"]
    label: Int64[Tensor, "P"]
    """1 where they match, 0 where not, ``IGNORED`` for a negative that does not exist."""


def admissible_negatives(
    ids: Int64[Tensor, "B"] | None, num: int, *, group_size: int | None = None, device: torch.device | None = None
) -> Bool[Tensor, "B B"]:
    """True where column j may serve row i as a negative: another id, and the same group.

    Args:
        ids: identity of the clip of each row, or None where all differ.
        num: number of rows B.
        group_size: rows are cut into consecutive groups of so many, and negatives stay within; None is one group. With
            a size that divides every rank's batch, what is mined does not depend on the number of ranks.
        device: where the result goes when there are no ids.
    """
    ids = torch.arange(num, device=device) if ids is None else ids
    different = ids[:, None] != ids[None, :]
    if group_size is None:
        return different
    group = torch.arange(num, device=ids.device) // group_size
    return different & (group[:, None] == group[None, :])


def negative_weights(
    similarity: Float[Tensor, "B B"], ids: Int64[Tensor, "B"] | None = None, *, group_size: int | None = None
) -> Float[Tensor, "B B"]:
    """Unnormalised probability that row i draws column j as its negative.

    ``softmax(S + 1e-4)`` over the row, zero where j is not admissible, 0.01 where it is not finite.

    Args:
        similarity: cosines divided by the temperature.
        ids: see `admissible_negatives`.
        group_size: see `admissible_negatives`.

    Source: reference ``vtm_loss``; the constant inside the softmax has no effect, since softmax ignores shifts.
    """
    admissible = admissible_negatives(ids, len(similarity), group_size=group_size, device=similarity.device)
    weights = (similarity + 1e-4).softmax(dim=1).masked_fill(~admissible, 0.0)
    return weights.nan_to_num(nan=0.01, posinf=0.01, neginf=0.01)


@torch.no_grad()
def hard_negatives(
    visual: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    temperature: Temperature,
    ids: Int64[Tensor, "B"] | None,
    noise: Float[Tensor, "B 2"],
    *,
    group_size: int | None = None,
    hard: bool = True,
) -> Negatives:
    """Draw a wrong clip for each caption and a wrong caption for each clip, the likelier the more similar.

    The distribution is `negative_weights`, normalised over the row. It is computed among the admissible columns alone,
    so a confident batch cannot underflow to a row without any weight.

    Args:
        visual: features of the clips of this rank.
        text: features of their captions.
        temperature: divisor of the cosines.
        ids: rows of equal id are never negatives of each other; None where all differ.
        noise: uniform draws in [0, 1): column 0 chooses the clip, column 1 the caption.
        group_size: see `admissible_negatives`.
        hard: False draws uniformly among the admissible ones.

    Source: ALBEF (arXiv:2107.07651) section 3.2; reference ``vtm_loss`` with ``vtm_hard_neg``.
    """
    num = len(visual)
    admissible = admissible_negatives(ids, num, group_size=group_size, device=visual.device)
    clip_weights = caption_weights = admissible.double()
    if hard:
        similarity = cosine_similarity(visual, text) / temperature
        # The matrix of admissible pairs is symmetric: one mask serves both directions.
        caption_weights = negative_weights(similarity.masked_fill(~admissible, -torch.inf), ids, group_size=group_size)
        clip_weights = negative_weights(similarity.T.masked_fill(~admissible, -torch.inf), ids, group_size=group_size)
    valid = admissible.any(dim=1)
    own = torch.arange(num, device=visual.device)
    return Negatives(
        vision=torch.where(valid, _inverse_cdf(clip_weights, noise[:, 0]), own),
        text=torch.where(valid, _inverse_cdf(caption_weights, noise[:, 1]), own),
        valid=valid,
    )


def matching_pairs(negatives: Negatives) -> MatchingPairs:
    """List the 3B pairs of a batch and their labels."""
    own = torch.arange(len(negatives.valid), device=negatives.valid.device)
    wrong = torch.where(negatives.valid, 0, IGNORED)
    return MatchingPairs(
        vision=torch.cat([own, negatives.vision, own]),
        text=torch.cat([own, own, negatives.text]),
        label=torch.cat([torch.ones_like(own), wrong, wrong]),
    )


def matching_loss(
    logits: Float[Tensor, "P 2"], label: Int64[Tensor, "P"]
) -> tuple[Float[Tensor, ""], Int64[Tensor, ""]]:
    """Sum of the cross-entropy over the pairs that count, and their number; the mean is the caller's.

    Args:
        logits: scores of (no match, match).
        label: 1, 0, or ``IGNORED``.

    Source: InternVideo2 (arXiv:2403.15377) section 3.2, ``L_match``.
    """
    total = cross_entropy(logits.float(), label, ignore_index=IGNORED, reduction="sum")
    return total, (label != IGNORED).sum()


def _inverse_cdf(weights: Float[Tensor, "B B"], noise: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
    """First column at which the running sum of the row exceeds ``noise`` times its total; B where there is none."""
    cumulative = weights.double().cumsum(dim=1)
    # A draw rounded up to one would exceed nothing.
    threshold = noise.double().clamp(max=1 - 1e-12)[:, None] * cumulative[:, -1:]
    # A sum computed in parallel may rise by a rounding error over columns without weight.
    reached = (cumulative > threshold) & (weights > 0)
    return (~reached).long().cumprod(dim=1).sum(dim=1)

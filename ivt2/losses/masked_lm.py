"""Masked language modelling: which tokens to corrupt, and the loss on them."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from ivt2.errors import InputError

IGNORED = -100
"""Label of a position that does not enter the loss."""

MASK_SHARE = 0.8
"""Share of the selected tokens that become [MASK]. Source: BERT (arXiv:1810.04805), section 3.1."""

RANDOM_SHARE = 0.5
"""Share of the others that become a random token (10 % of all); the rest stay as they are. Source: the same."""


class MaskDraws(NamedTuple):
    """Four uniform draws in [0, 1) for every token: all the chance that :func:`mask_tokens` needs."""

    selected: Float[Tensor, "B L"]
    """Below ``probability``: the token is to be predicted."""
    replaced: Float[Tensor, "B L"]
    """Below 0.8: a selected token becomes [MASK]."""
    randomised: Float[Tensor, "B L"]
    """Below 0.5: a selected token that is not [MASK] becomes a random one."""
    random_id: Float[Tensor, "B L"]
    """Which one: the id is floor(draw * vocab_size)."""

    @classmethod
    def from_uniform(cls, noise: Float[Tensor, "B num"]) -> "MaskDraws":
        """Split ``num = 4 L`` draws of each text.

        Token l takes draws 4 l to 4 l + 3, so with a counter-based generator its fate does not depend on the padding.

        Raises:
            ValueError: if ``num`` is no multiple of 4.
        """
        batch, num = noise.shape
        if num % 4:
            raise ValueError(f"each token needs 4 draws, and {num} is no multiple of 4")
        return cls(*noise.reshape(batch, num // 4, 4).unbind(-1))


def mask_tokens(
    input_ids: Int64[Tensor, "B L"],
    draws: MaskDraws,
    *,
    vocab_size: int,
    mask_id: int,
    pad_id: int,
    cls_id: int,
    probability: float = 0.5,
) -> tuple[Int64[Tensor, "B L"], Int64[Tensor, "B L"]]:
    """Corrupt tokens and say what they were.

    Each token is selected with ``probability``, never padding or the start token (a closing [SEP] can be). Of the
    selected ones 80 % become [MASK], 10 % a uniformly random id, 10 % stay.

    Args:
        input_ids: token ids.
        draws: uniform draws, one set for each token.
        vocab_size: random ids are taken from [0, vocab_size).
        mask_id: id of [MASK].
        pad_id: id of padding.
        cls_id: id of the start token.
        probability: of being selected, in [0, 1]. The reference uses 0.5 in stage 2, BERT used 0.15.

    Returns:
        Corrupted ids, and labels: the original id where selected, -100 elsewhere.

    Raises:
        InputError: if the tokenizer has no mask token.

    Source: BERT (arXiv:1810.04805), section 3.1; reference multi_modality, MLM criterion.
    """
    if mask_id < 0:
        raise InputError("the tokenizer has no mask token to hide words with: take a BERT vocabulary, or leave mlm out")
    selected = (draws.selected < probability) & (input_ids != pad_id) & (input_ids != cls_id)
    masked = selected & (draws.replaced < MASK_SHARE)
    randomised = selected & ~masked & (draws.randomised < RANDOM_SHARE)
    # Draws are at most 1 - 2**-24, for which the product stays below vocab_size in float32 too.
    random_ids = (draws.random_id * vocab_size).long()
    corrupted = torch.where(randomised, random_ids, input_ids.masked_fill(masked, mask_id))
    return corrupted, input_ids.masked_fill(~selected, IGNORED)


def masked_lm_loss(
    logits: Float[Tensor, "*batch vocabulary"], labels: Int64[Tensor, "*batch"]
) -> tuple[Float[Tensor, ""], Int64[Tensor, ""]]:
    """Cross-entropy summed over the positions to predict, and their number.

    The loss is ``total / count``; both are returned because a mean over ranks must weigh each rank by its count.

    Args:
        logits: scores over the vocabulary.
        labels: the true id, or -100 where there is nothing to predict.

    Returns:
        Total in float32 (0, with its graph, if nothing is to be predicted) and count.
    """
    total = cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (labels != IGNORED).sum()

"""What text encoders have in common: where a text is read off, and whether a tokenizer suits them.

M texts of L tokens.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from ivt2.batch import Vocabulary
from ivt2.errors import InputError


def last_position(input_ids: Int64[Tensor, "M L"], pad_id: int) -> Int64[Tensor, "M"]:
    """Position of the last token of each text that is not padding; 0 where all are.

    Args:
        input_ids: Tokens, padded on the right.
        pad_id: Token that fills texts up.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return torch.where(input_ids != pad_id, positions, 0).amax(dim=1)


def check_size(vocabulary: Vocabulary, vocab_size: int) -> None:
    """Refuse a tokenizer whose ids the network has no rows for.

    Args:
        vocabulary: Facts of the tokenizer.
        vocab_size: Rows of the network's embedding.

    Raises:
        InputError: if it has more tokens.
    """
    if vocabulary.size > vocab_size:
        raise InputError(
            f"the tokenizer has {vocabulary.size} entries but text_encoder.vocab_size is {vocab_size}: raise it, "
            "take the tokenizer that the text encoder was made for, or train a smaller vocabulary"
        )


def check_padding(vocabulary: Vocabulary, pad_id: int) -> None:
    """Refuse a tokenizer that fills texts up with a token that the network would read.

    Args:
        vocabulary: Facts of the tokenizer.
        pad_id: What the network takes for padding.

    Raises:
        InputError: if they differ.
    """
    if vocabulary.pad_id != pad_id:
        raise InputError(
            f"the tokenizer pads with {vocabulary.pad_id}, the text encoder takes {pad_id} for padding: take the "
            "tokenizer that it was made for"
        )

"""Multiple choice by similarity: which of a clip's own options describes it."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ivt2.ops.similarity import Temperature


def choice_probabilities(
    visual: Float[Tensor, "B D"], options: Float[Tensor, "B A D"], temperature: Temperature
) -> Float[Tensor, "B A"]:
    """``softmax over options of cos(v, o) / temperature``.

    Args:
        visual: features of clips.
        options: features of the A options of each clip.
        temperature: divisor of the cosines.

    Source: reference ``retrieval_mc`` evaluation.
    """
    cosines = torch.einsum("bd,bad->ba", normalize(visual.float(), dim=-1), normalize(options.float(), dim=-1))
    return (cosines / temperature).softmax(dim=1)

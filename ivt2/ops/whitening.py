"""Features with equal spread in every direction.

y = (x - m) (C + eps a I)^(-1/2),    m mean, C covariance, a largest variance of a direction
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ivt2.ops.distributed import all_gather


@torch.no_grad()
def whiten(x: Float[Tensor, "*batch D"], *, eps: float = 1e-4) -> Float[Tensor, "*batch D"]:
    """Whiten features by what the batches of all ranks together spread, in single precision; without gradient.

    The root of the inverse is the symmetric one (ZCA), so directions keep their places from batch to batch. Every rank
    must call it, also one without features. It costs an eigendecomposition of a D x D matrix.

    Args:
        x: Features.
        eps: Share of the largest variance that is added to all, so that directions of rounding noise stay small.

    Source: Ermolov et al., "Whitening for self-supervised representation learning" (arXiv:2007.06346); for targets of
        several teachers Ranzinger et al., "PHI-S" (arXiv:2410.01680).
    """
    rows = x.flatten(0, -2).double()
    ones = rows.new_ones(len(rows), 1)
    # Moments of the features and a column of ones, so that counts and means come along.
    extended = torch.cat([ones, rows], dim=1)
    moments = all_gather((extended.T @ extended).unsqueeze(0)).sum(dim=0)
    moments = moments / moments[0, 0].clamp_min(1.0)
    mean = moments[0, 1:]
    variance, directions = torch.linalg.eigh(moments[1:, 1:] - torch.outer(mean, mean))
    floor = (eps * variance[-1]).clamp_min(torch.finfo(torch.float32).tiny)
    scale = (variance.clamp_min(0.0) + floor).rsqrt()
    whitened: Tensor = (rows - mean) @ (directions * scale) @ directions.T
    return whitened.float().view(x.shape)

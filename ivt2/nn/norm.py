"""Normalisation over the channel dimension."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivt2.ops.fused import rms_norm


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    Computed in float32 at least, weight included, and cast once at the end, as the fused kernels of the reference do.

    Args:
        dim: Width of the last dimension.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Normalise; the result has the dtype of the input."""
        return rms_norm(x, self.weight, self.eps)

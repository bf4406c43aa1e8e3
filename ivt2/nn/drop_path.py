"""Stochastic depth."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivt2.errors import InputError


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training; survivors are divided by the keep probability.

    Args:
        rate: Probability in [0, 1) that the branch of a sample is dropped.

    Raises:
        InputError: if the rate is outside [0, 1).

    Source: Huang et al., "Deep networks with stochastic depth", 2016.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"drop_path={rate} is not a probability below 1: use a number in [0, 1)")
        self.rate = rate

    def forward(self, x: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        """Drop or scale; identity outside training."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * kept / keep

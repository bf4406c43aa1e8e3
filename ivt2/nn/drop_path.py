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
        self._drops = rate > 0
        # A tensor and not a number: blocks of different rates then share what torch.compile makes of them. No buffer,
        # for it is no state and must stay on the CPU, where tensors of one number serve all devices.
        self._keep = torch.tensor(1 - rate, dtype=torch.float32, device="cpu")

    def forward(self, x: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        """Drop or scale; identity outside training."""
        factor = self.factor(x)
        return x if factor is None else (x * factor).to(x.dtype)

    def factor(self, x: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *ones"] | None:
        """Factor of each sample: 0, or the inverse of the keep probability; None outside training.

        Args:
            x: Branch, of any shape.
        """
        if not (self.training and self._drops):
            return None
        dtype = torch.promote_types(x.dtype, torch.float32)
        noise = torch.rand(x.shape[0], *[1] * (x.ndim - 1), dtype=dtype, device=x.device)
        return (noise < self._keep).to(dtype) / self._keep

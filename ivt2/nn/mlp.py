"""The two-layer perceptron of a transformer block."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Gelu = Literal["tanh", "erf"]


class Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))``.

    Args:
        dim: Width of the input.
        hidden_dim: Width between.
        out_dim: Width of the output; that of the input where None.
        gelu: ``tanh`` is the approximation inside the fused kernel that the released weights were trained with;
            ``erf`` is the exact function, which the reference falls back to without that kernel.
    """

    def __init__(self, dim: int, hidden_dim: int, *, out_dim: int | None = None, gelu: Gelu = "tanh") -> None:
        super().__init__()
        self.approximate = "tanh" if gelu == "tanh" else "none"
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D_out"]:
        """Apply both layers."""
        hidden = functional.gelu(self.fc1(x), approximate=self.approximate)
        out: Tensor = self.fc2(hidden)
        return out

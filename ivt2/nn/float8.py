"""Linear layers of frozen networks in float8 (e4m3: four bits of exponent, three of mantissa).

    y = (q_x s_x) (q_w s_w)^T + b,    s = max|row| / 448,    q = float8(row / s)

with a scale for each row of the input (a token) and each row of the weight (an output).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

FORMAT = torch.float8_e4m3fn
MULTIPLE = 16
"""The hardware's product takes matrices whose sides are multiples of this."""

_LARGEST = torch.finfo(FORMAT).max
_SMALLEST_ROW = 1e-12
_PER_ROW = functional.ScalingType.RowWise


class Float8Linear(nn.Module):
    """A frozen linear layer that holds a byte for each weight.

    Args:
        linear: The layer to copy, of sides that ``fits_float8`` accepts.
        native: Whether inputs are quantised too and the hardware multiplies float8; else the weight is written out in
            the input's format for each product, which saves memory and not time.
    """

    weight: Tensor
    scale: Tensor
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, *, native: bool) -> None:
        super().__init__()
        self.native = native
        weight, scale = to_float8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D_out"]:
        """Multiply and add; bfloat16 goes in and out where the hardware multiplies."""
        if not self.native:
            return functional.linear(x, (self.weight.float() * self.scale).to(x.dtype), self.bias)
        rows, scale = to_float8(x.flatten(0, -2))
        out: Tensor = functional.scaled_mm(
            rows,
            self.weight.t(),
            scale,
            _PER_ROW,
            self.scale.t(),
            _PER_ROW,
            bias=self.bias,
            output_dtype=x.dtype,
            use_fast_accum=True,
        )
        return torch.unflatten(out, 0, x.shape[:-1])


def to_float8(x: Float[Tensor, "rows D"]) -> tuple[Float[Tensor, "rows D"], Float[Tensor, "rows 1"]]:
    """Values in float8 and the scale in float32 that each row of them was divided by.

    Args:
        x: Finite numbers; a row of zeros stays zero.
    """
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=_SMALLEST_ROW) / _LARGEST
    return (x / scale).to(FORMAT), scale


def fits_float8(layer: nn.Module) -> bool:
    """Whether a module is a linear layer whose sides are multiples of 16."""
    return isinstance(layer, nn.Linear) and layer.in_features % MULTIPLE == 0 == layer.out_features % MULTIPLE


@torch.no_grad()
def quantise(network: nn.Module, *, native: bool) -> int:
    """Replace the linear layers below a module that fit, one by one, so that but one is held in both formats.

    Args:
        network: Frozen; it is changed in place.
        native: See :class:`Float8Linear`.

    Returns:
        How many were replaced.
    """
    num_replaced = 0
    parents = [module for module in network.modules() if not isinstance(module, nn.Linear)]
    for parent in parents:
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and fits_float8(layer):
                setattr(parent, name, Float8Linear(layer, native=native))
                num_replaced += 1
    return num_replaced


def multiplies_float8(device: torch.device) -> bool:
    """Whether a device has a product of float8 matrices with a scale for each row.

    CUDA has it from compute capability 8.9 on, but for some cards torch has no such kernel: one product is tried.
    The CPU has it too, slower than in bfloat16.

    Args:
        device: Where the network runs.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    layer = Float8Linear(nn.Linear(MULTIPLE, MULTIPLE, device=device, dtype=torch.bfloat16), native=True)
    try:
        layer(torch.ones(1, MULTIPLE, device=device, dtype=torch.bfloat16))
    except RuntimeError:
        return False
    return True

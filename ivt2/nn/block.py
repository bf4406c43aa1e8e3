"""The transformer block of the vision encoders."""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivt2.nn.attention import SelfAttention
from ivt2.nn.drop_path import DropPath
from ivt2.nn.mlp import Gelu, Mlp
from ivt2.nn.norm import RMSNorm
from ivt2.ops.attention import Backend
from ivt2.ops.fused import scaled_add


class LayerScale(nn.Module):
    """Learned factor on each channel of a residual branch.

    Args:
        dim: Width.
        init: Value that the factors start from.
        fp32: Whether the product is computed in float32 at least, then cast back (the reference's default;
            its CLIP models multiply in the dtype of the branch). The same unless branch and factors differ in dtype,
            as under autocast.

    Source: Touvron et al., "Going deeper with image transformers", 2021.
    """

    def __init__(self, dim: int, *, init: float, fp32: bool = True) -> None:
        super().__init__()
        self.init = init
        self.fp32 = fp32
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every factor to its start."""
        nn.init.constant_(self.gamma, self.init)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Scale; the result has the dtype of the input."""
        return (x * self.gain(x.dtype)).to(x.dtype)

    def gain(self, dtype: torch.dtype) -> Float[Tensor, "D"]:
        """The factors, in the dtype that the product with a branch of the given one is computed in.

        Args:
            dtype: Of the branch.
        """
        return self.gamma.to(torch.promote_types(dtype, torch.float32) if self.fp32 else dtype)


class Block(nn.Module):
    """Pre-norm residual block.

    ``x += drop_path(ls1(attn(norm1(x))))``, then ``x += drop_path(ls2(mlp(norm2(x))))``.

    Args:
        dim: Width.
        num_heads: Heads of the attention.
        mlp_ratio: Hidden width of the perceptron is ``int(dim * mlp_ratio)``.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_norm: Whether queries and keys are normalised over the full width.
        layer_scale_init: Start of LayerScale; None leaves it out.
        layer_scale_fp32: Whether LayerScale multiplies in float32.
        drop_path: Probability in [0, 1) of dropping each of the branches of a sample.
        gelu: See ``Mlp``.
        attention: See ``ivt2.ops.attention.attention``.
        norm: Makes the two norms, given the width.
        attn: Kind of self-attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qkv_bias: bool = False,
        qk_norm: bool = True,
        layer_scale_init: float | None = 1e-5,
        layer_scale_fp32: bool = True,
        drop_path: float = 0.0,
        gelu: Gelu = "tanh",
        attention: Backend = "auto",
        norm: Callable[[int], nn.Module] = RMSNorm,
        attn: type[SelfAttention] = SelfAttention,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = attn(dim, num_heads, qkv_bias=qkv_bias, qk_norm=qk_norm, backend=attention)
        self.ls1 = _layer_scale(dim, layer_scale_init, fp32=layer_scale_fp32)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu=gelu)
        self.ls2 = _layer_scale(dim, layer_scale_init, fp32=layer_scale_fp32)
        self.drop_path2 = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "B N D"], bias: Float[Tensor, "#B #heads #N N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Run both branches; the result is the residual stream, not normalised.

        Args:
            x: Tokens.
            bias: Added to the attention scores; large negative numbers hide keys.
        """
        middle = _add(x, self.attn(self.norm1(x), bias), self.ls1, self.drop_path1)
        return _add(middle, self.mlp(self.norm2(middle)), self.ls2, self.drop_path2)


def _add(x: Tensor, branch: Tensor, scale: nn.Module, drop: DropPath) -> Tensor:
    """``x + drop(scale(branch))``; the factors are multiplied with each other first, for they are few."""
    gain = scale.gain(branch.dtype) if isinstance(scale, LayerScale) else None
    kept = drop.factor(branch)
    if gain is None and kept is None:
        return x + branch
    if gain is None or kept is None:
        return scaled_add(x, branch, cast("Tensor", kept if gain is None else gain))
    return scaled_add(x, branch, gain * kept)


def _layer_scale(dim: int, init: float | None, *, fp32: bool) -> nn.Module:
    return nn.Identity() if init is None else LayerScale(dim, init=init, fp32=fp32)

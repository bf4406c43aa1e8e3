"""Row-wise functions with gradients written by hand: fewer passes over memory where there is no kernel for all of it.

On a CPU without ``torch.compile`` each elementary operation is a pass over its tensors and a tensor of its own for the
gradient. Elsewhere the same functions are left to torch: its GPU kernels and its compiler fuse them better.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def rms_norm(x: Float[Tensor, "*batch D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*batch D"]:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, in float32 at least, in the dtype of ``x``.

    Args:
        x: Rows.
        weight: Factor of each channel.
        eps: Added to the mean square.
    """
    if _by_hand(x):
        normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]  # torch does not annotate it
        return normed
    wide = torch.promote_types(x.dtype, torch.float32)
    return functional.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(x.dtype)


def scaled_add(
    x: Float[Tensor, "B N D"], branch: Float[Tensor, "B N D"], gain: Float[Tensor, "*gain"]
) -> Float[Tensor, "B N D"]:
    """``x + branch * gain``, rounded once, to the wider dtype of the first two.

    Args:
        x: Residual stream.
        branch: Is added.
        gain: Factor of each channel, each sample, or each channel of each sample.
    """
    return torch.addcmul(x, branch, gain).to(torch.promote_types(x.dtype, branch.dtype))


def unit(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """Rows scaled to unit length; those shorter than 1e-12 are only divided by that.

    Args:
        x: Rows.
    """
    if _by_hand(x):
        scaled: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]  # torch does not annotate it
        return scaled
    return functional.normalize(x, dim=-1)


def cosine(student: Float[Tensor, "*rows D"], teacher: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows"]:
    """Cosines of paired rows; neither unit vectors nor products of all channels are held in memory.

    Args:
        student: Rows that may learn.
        teacher: Rows of the same shape and dtype; no gradient is taken through them.
    """
    if torch.compiler.is_compiling():
        return (functional.normalize(student, dim=-1) * functional.normalize(teacher, dim=-1)).sum(dim=-1)
    cosines: Tensor = _Cosine.apply(student, teacher)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return cosines


def _by_hand(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _RMSNorm(Function):
    """With n = x / rms(x): dx = (g w - n mean(g w n)) / rms(x), dw = sum(g n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normed: Tensor = (wide * inverse).mul_(weight).to(x.dtype)
        return normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        wide, factor = gradients[0].to(inverse.dtype), weight.to(inverse.dtype)
        normal = x * inverse
        product = wide * normal
        with torch.autocast(x.device.type, enabled=False):
            mean = (product @ factor).div_(x.shape[-1]).unsqueeze(-1)
        grad = (wide * factor).addcmul_(normal, mean, value=-1).mul_(inverse)
        return grad.to(x.dtype), product.flatten(0, -2).sum(0).to(weight.dtype), None


class _Cosine(Function):
    """With c = <s, t> / |s| |t|: ds = g (t / |s| |t| - s c / |s|^2)."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        own, other = (torch.linalg.vector_norm(each, dim=-1).clamp_min_(1e-12) for each in (student, teacher))
        inverse = (own * other).reciprocal_()
        with torch.autocast(student.device.type, enabled=False):  # it is a matrix product to autocast
            cosines: Tensor = torch.linalg.vecdot(student, teacher) * inverse
        ctx.save_for_backward(student, teacher, inverse, cosines / own.square_())
        return cosines

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        student, teacher, inverse, shrinking = ctx.saved_tensors
        towards = teacher * (gradients[0] * inverse).unsqueeze(-1)
        return towards.addcmul_(student, (gradients[0] * shrinking).unsqueeze(-1), value=-1), None


class _Unit(Function):
    """With u = x / |x|: dx = (g - u <u, g>) / |x|."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12).reciprocal_()
        scaled: Tensor = x * inverse
        ctx.save_for_backward(scaled, inverse)
        return scaled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        scaled, inverse = ctx.saved_tensors
        with torch.autocast(scaled.device.type, enabled=False):
            share = torch.linalg.vecdot(scaled, gradients[0]).unsqueeze(-1)
        return torch.addcmul(gradients[0], scaled, share, value=-1).mul_(inverse)

"""Collectives whose gradients are those of a loss over the global batch.

Letters: W ranks (the world), b items on one rank, n items on all ranks together.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

_Value = TypeVar("_Value")


def rank_and_world() -> tuple[int, int]:
    """Rank of this process and number of ranks; (0, 1) where no process group is initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_gather(x: Shaped[Tensor, "b *rest"], *, reference_gradient_scale: bool = False) -> Shaped[Tensor, "n *rest"]:
    """Concatenate the items of all ranks in rank order; the gradient flows back to the rank that gave them.

    Every rank must call it, with the same type and trailing shape; the number of items may differ and may be zero.
    Without a process group, or with a single rank, the tensor itself is returned and the flag has no effect.

    Let L be one loss of all n items that every rank computes. By default the gradients of all ranks are summed, so that
    the parameter gradient averaged over ranks, as data-parallel engines do, is the true gradient of L.

    Args:
        x: items of this rank; integers and booleans are gathered without gradient.
        reference_gradient_scale: backward passes on this rank's slice of this rank's own gradient instead. After the
            averaging the gradient through ``x`` is 1/W of the true one, while that of parameters which enter L
            directly (the temperature) is whole.

    Source: the reference's gather for the contrastive loss has the second behaviour (fact 8 of the stage-2 notes).
    """
    _, world = rank_and_world()
    if world == 1:
        return x
    sizes = _exchange_sizes(x)
    if not x.is_floating_point():
        return _concatenate(x, sizes)
    gathered: Tensor = _AllGather.apply(x, sizes, reference_gradient_scale)  # type: ignore[no-untyped-call]
    return gathered


def gather_objects(value: _Value) -> list[_Value]:
    """Return the value of every rank, in rank order; every rank must call it.

    Args:
        value: of this rank; it is pickled.
    """
    _, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def global_mean(total: Float[Tensor, ""], count: Shaped[Tensor, ""] | int) -> Float[Tensor, ""]:
    """Scale a local sum so that its mean over ranks is the mean over all counted items.

    ``total * W / max(sum of counts over ranks, 1)``: ranks with more items weigh more, and the parameter gradient
    averaged over ranks is that of the global mean. Every rank must call it. With nothing counted on any rank the result
    is ``total`` (a zero that keeps the graph).

    Args:
        total: sum of the loss over the items of this rank.
        count: number of these items.
    """
    _, world = rank_and_world()
    counted = torch.as_tensor(count, device=total.device).detach().to(torch.float64, copy=True)
    if world > 1:
        home, counted = counted.device, _for_backend(counted)
        dist.all_reduce(counted)
        counted = counted.to(home)
    return total * (world / counted.clamp(min=1)).to(total.dtype)


class _AllGather(torch.autograd.Function):
    """Gather with one of two backward rules, see `all_gather`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], reference_gradient_scale: bool) -> Tensor:  # noqa: FBT001
        ctx.sizes = sizes
        ctx.reference_gradient_scale = reference_gradient_scale
        return _concatenate(x, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.reference_gradient_scale:
            # Summed in single precision: gradients of several ranks in half precision would lose their small parts.
            summed = _for_backend(grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True).contiguous())
            dist.all_reduce(summed)
            grad = summed.to(grad)
        rank = dist.get_rank()
        start = sum(ctx.sizes[:rank])
        return grad[start : start + ctx.sizes[rank]], None, None


def _for_backend(x: Tensor) -> Tensor:
    """NCCL moves tensors of the GPU only."""
    return x.cuda() if dist.get_backend() == "nccl" and not x.is_cuda else x


def _exchange_sizes(x: Tensor) -> list[int]:
    """Number of items on each rank."""
    own = _for_backend(torch.tensor([len(x)], device=x.device))
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    return [int(size) for size in torch.cat(sizes).tolist()]


def _concatenate(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Pad to the largest rank, gather, cut the padding off again."""
    # Not every backend moves booleans.
    data = _for_backend(x.detach().to(torch.uint8) if x.dtype == torch.bool else x.detach())
    if max(sizes) == 0:
        return data.to(x)
    padded = data.new_zeros(max(sizes), *data.shape[1:])
    padded[: len(data)] = data
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(x)

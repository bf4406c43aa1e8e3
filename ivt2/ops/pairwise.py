"""Sums over all pairs of two sets of features, a few rows at a time, so that no matrix of all pairs ever exists.

Letters: b rows of this rank, n columns (of all ranks), c rows of a chunk, D width.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from ivt2.errors import InputError
from ivt2.ops.distributed import rank_and_world

PairRule: TypeAlias = Callable[[Float[Tensor, "c n"], Bool[Tensor, "c n"]], Float[Tensor, ""]]
"""Takes logits and which of them are positives; returns the sum of the loss and leaves its gradient in the logits."""

_IDS_PER_RANK = 1 << 40


def pairwise_sum(
    queries: Float[Tensor, "b D"],
    keys: Float[Tensor, "n D"],
    query_ids: Int64[Tensor, "b"],
    key_ids: Int64[Tensor, "n"],
    rule: PairRule,
    *,
    bias: Float[Tensor, ""] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Sum of a loss over the rows of ``queries @ keys.T + bias``, which are computed ``chunk`` rows at a time.

    Gradients are computed together with the value, while a chunk is there: backward only scales them. What is held is
    a few times ``chunk * n`` numbers and two copies of the features' gradients. Autocast is off.

    Args:
        queries: rows, of single precision or better; a temperature is divided out of them beforehand.
        keys: columns.
        query_ids: identity of each row; pairs of equal identity are positives.
        key_ids: identity of each column.
        rule: the loss of a block of rows.
        bias: added to all logits.
        chunk: rows at a time, at least 1; None takes all at once.

    Raises:
        InputError: when a chunk has no rows.
    """
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk={chunk}: must be at least 1, or null for all rows at once")
    if not torch.is_grad_enabled():
        queries, keys, bias = queries.detach(), keys.detach(), None if bias is None else bias.detach()
    with torch.autocast(queries.device.type, enabled=False):
        total: Tensor = _PairwiseSum.apply(queries, keys, bias, query_ids, key_ids, rule, chunk)  # type: ignore[no-untyped-call]
    return total


def unit_rows(x: Float[Tensor, "b *parts D"]) -> Float[Tensor, "b D"]:
    """Features of unit length in single precision or better; of features in parts the mean of the parts' units.

    The product of two such rows is what `cosine_similarity` gives for ``parts="mean"``.

    Args:
        x: features, ``[b, D]`` or ``[b, P, D]``.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
        return unit if unit.ndim == 2 else unit.mean(dim=1)


def ids_or_own(ids: Int64[Tensor, "b"] | None, rows: Float[Tensor, "b D"]) -> Int64[Tensor, "b"]:
    """The identities of rows; where none are given, numbers that differ over all rows of all ranks."""
    if ids is not None:
        return ids
    rank, _ = rank_and_world()
    return torch.arange(len(rows), device=rows.device) + rank * _IDS_PER_RANK


class _PairwiseSum(torch.autograd.Function):
    """Value and gradients in one pass over the chunks."""

    @staticmethod
    def forward(  # noqa: PLR0917  # torch passes them by position
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        bias: Tensor | None,
        query_ids: Tensor,
        key_ids: Tensor,
        rule: PairRule,
        chunk: int | None,
    ) -> Tensor:
        total = queries.new_zeros(())
        grads = [
            torch.zeros_like(x) if x is not None and needed else None
            for x, needed in zip((queries, keys, bias), ctx.needs_input_grad, strict=False)
        ]
        grad_queries, grad_keys, grad_bias = grads
        step = len(queries) if chunk is None else chunk
        for start in range(0, len(queries), max(step, 1)):
            rows = slice(start, start + step)
            block = queries[rows] @ keys.T
            if bias is not None:
                block += bias
            total += rule(block, query_ids[rows, None] == key_ids)
            if grad_queries is not None:
                torch.mm(block, keys, out=grad_queries[rows])
            if grad_keys is not None:
                grad_keys.addmm_(block.T, queries[rows])
            if grad_bias is not None:
                grad_bias += block.sum()
            del block  # before the next one is made
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if saved is None else saved * grad for saved in ctx.saved_tensors), None, None, None, None

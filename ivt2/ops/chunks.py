"""Run a function on a few rows at a time, and again in the backward pass, so that one chunk's activations are held."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ivt2.ops.distributed import all_gather


def by_chunks(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Shaped[Tensor, "B ..."] | None], num_chunks: int
) -> tuple[Tensor, ...]:
    """``function(*inputs)``, computed chunk by chunk; results and gradients are those of the whole.

    A chunk's activations are dropped once its results are there, and computed anew in the backward pass from the same
    state of the random generators. A loss of all rows then costs the memory of one chunk, which accumulated gradients
    of smaller batches cannot replace: there, rows of different batches never meet.

    Args:
        function: gives tensors whose first dimension is that of its inputs, each row by itself. What it draws at random
            is drawn for each chunk, and batch statistics would be those of a chunk.
        inputs: tensors of equally many rows; None is passed on.
        num_chunks: equal parts that the rows are cut into, some of them one shorter; 1 calls the function as it is.

    Source: gradient caching, arXiv:2101.06983; here by recomputation of whole chunks, arXiv:1604.06174.
    """
    if num_chunks == 1:
        return function(*inputs)
    parts = [[None] * num_chunks if each is None else torch.tensor_split(each, num_chunks) for each in inputs]
    results = [checkpoint(function, *chunk, use_reentrant=False) for chunk in zip(*parts, strict=True)]
    return tuple(torch.cat(each) for each in zip(*results, strict=True))


def num_chunks(num_rows: int, chunk: int | None, *, device: torch.device | None = None) -> int:
    """Chunks of at most ``chunk`` rows that the rows of the fullest rank make; every rank must call it.

    The same number on all ranks, since sharded parameters are gathered for each chunk.

    Args:
        num_rows: rows of this rank.
        chunk: rows at a time, at least 1; None is one chunk.
        device: where this rank computes.
    """
    if chunk is None:
        return 1
    most = int(all_gather(torch.tensor([num_rows], device=device)).max())
    return max(-(-most // chunk), 1)

"""Run a function on a few rows at a time, and again in the backward pass, so that one chunk's activations are held."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ivt2.errors import InputError
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
        num_chunks: equal parts that the rows are cut into, some of them one shorter; 1 calls the function as it is. It
            is called as often where rows are fewer, with one that counts for nothing.

    Source: gradient caching, arXiv:2101.06983; here by recomputation of whole chunks, arXiv:1604.06174.
    """
    if num_chunks == 1:
        return function(*inputs)
    num_rows = next(len(each) for each in inputs if each is not None)
    results = [
        tuple(each[:size] for each in checkpoint(function, *chunk, use_reentrant=False))
        for size, chunk in _cut(inputs, num_rows, num_chunks)
    ]
    return tuple(torch.cat(each) for each in zip(*results, strict=True))


def check_chunk(chunk: int | None) -> None:
    """Refuse chunks without rows.

    Args:
        chunk: ``encode_chunk`` of a module; None takes all rows at once.

    Raises:
        InputError: it is below 1.
    """
    if chunk is not None and chunk < 1:
        raise InputError(f"encode_chunk={chunk}: give the clips encoded at a time, at least 1, or null for all")


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


def _cut(
    inputs: Sequence[Tensor | None], num_rows: int, num_chunks: int
) -> Iterator[tuple[int, tuple[Tensor | None, ...]]]:
    """Sizes and rows of the chunks; one of size 0 has a row all the same, from which shapes can be told."""
    start = 0
    for number in range(num_chunks):
        size = num_rows // num_chunks + (number < num_rows % num_chunks)
        rows = slice(start, start + size) if size else slice(0, 1)
        yield size, tuple(None if each is None else each[rows] for each in inputs)
        start += size

"""The one scaled dot-product attention of the package, with interchangeable back ends."""

from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ivt2.errors import InputError

Backend = Literal["auto", "flash_attn", "sdpa", "eager"]

FLASH_ATTN_MAX_HEAD_DIM = 256


def attention(
    q: Float[Tensor, "B heads N head_dim"],
    k: Float[Tensor, "B heads M head_dim"],
    v: Float[Tensor, "B heads M head_dim"],
    *,
    bias: Float[Tensor, "#B #heads #N M"] | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "B heads N head_dim"]:
    """Attend from queries to keys: ``softmax(scale * q k^T + bias) v``.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        bias: Added to the scores; large negative numbers hide keys. At least one key of each query must stay open.
        dropout: Probability in [0, 1) of dropping an attention weight; the caller passes 0 outside training.
        scale: Factor on the scores; ``head_dim ** -0.5`` when None.
        backend: ``auto`` takes flash-attn where it can run (installed, GPU, half precision, no bias), plain matrix
            products on a CPU that learns in half precision, where torch's fused kernel takes twice as long, and that
            kernel elsewhere; a named back end runs or refuses, it is never replaced.

    Returns:
        One output for each query, in the dtype of ``v`` (of the autocast region, inside one).

    Raises:
        InputError: if a back end was named that cannot run here, or that does not exist.
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5
    match select_backend(q, bias=bias, backend=backend):
        case "flash_attn":
            return _flash_attn(q, k, v, dropout=dropout, scale=scale)
        case "eager":
            # Softmax sums in float32 whatever it is given and rounds once.
            weights = _scores(q, k, bias, scale).softmax(dim=-1).to(v.dtype)
            return (functional.dropout(weights, dropout) if dropout else weights) @ v
        case _:
            bias = None if bias is None else bias.to(q.dtype)
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def attention_weights(
    q: Float[Tensor, "B heads N head_dim"],
    k: Float[Tensor, "B heads M head_dim"],
    *,
    bias: Float[Tensor, "#B #heads #N M"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B heads N M"]:
    """Attention probabilities ``softmax(scale * q k^T + bias)``, for callers that look at the map itself.

    Args:
        q: Queries.
        k: Keys.
        bias: Added to the scores.
        scale: Factor on the scores; ``head_dim ** -0.5`` when None.

    Returns:
        Probabilities that sum to one over the keys, in float32 where the queries are in half precision.
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5
    scores = _scores(q, k, bias, scale)
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    scores = (q * scale) @ k.transpose(-2, -1)
    return scores if bias is None else scores + bias


def select_backend(
    q: Float[Tensor, "B heads N head_dim"],
    *,
    bias: Float[Tensor, "#B #heads #N M"] | None = None,
    backend: Backend = "auto",
) -> Backend:
    """The back end that ``attention`` uses for these queries, never ``auto``.

    Raises:
        InputError: if a back end was named that cannot run here, or that does not exist.
    """
    if backend not in get_args(Backend):
        raise InputError(f"attention={backend} does not exist: use one of {', '.join(get_args(Backend))}")
    if backend in {"sdpa", "eager"}:
        return backend
    obstacle = _flash_attn_obstacle(q, bias)
    if obstacle is None:
        return "flash_attn"
    if backend == "flash_attn":
        raise InputError(f"attention=flash_attn cannot run here: {obstacle}; use attention=auto")
    return "eager" if _learns_on_cpu_in_half(q) else "sdpa"


def _flash_attn_obstacle(q: Tensor, bias: Tensor | None) -> str | None:
    if not _on_gpu(q):
        return f"the tensors are on {q.device.type}, it needs a GPU"
    dtype = _computed_in(q)
    if dtype not in {torch.float16, torch.bfloat16}:
        return f"the tensors are {str(dtype).removeprefix('torch.')}, it needs float16 or bfloat16"
    if bias is not None:
        return "it takes no bias on the scores"
    if q.shape[-1] > FLASH_ATTN_MAX_HEAD_DIM:
        return f"heads are {q.shape[-1]} wide, it takes at most {FLASH_ATTN_MAX_HEAD_DIM}"
    if not _flash_attn_importable():
        return "the package flash_attn does not import (pip install 'ivt2[flash]')"
    return None


def _computed_in(q: Tensor) -> torch.dtype:
    device = q.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q.dtype


def _learns_on_cpu_in_half(q: Tensor) -> bool:
    learns = torch.is_grad_enabled() and q.requires_grad
    on_cpu = q.device.type == "cpu" and not _on_gpu(q)
    return learns and on_cpu and _computed_in(q) in {torch.float16, torch.bfloat16}


def _on_gpu(q: Tensor) -> bool:
    return q.is_cuda


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch does not annotate it
def _flash_attn_importable() -> bool:
    return _flash_attn_function() is not None


@cache
def _flash_attn_function() -> Callable[..., Tensor] | None:
    """Cached because a failing import searches the disk again each time; a wheel of another torch fails on load."""
    try:
        from flash_attn import flash_attn_func
    except (ImportError, OSError):
        return None
    function: Callable[..., Tensor] = flash_attn_func
    return function


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, *, dropout: float, scale: float) -> Tensor:
    """flash-attn reads [B, N, heads, head_dim] and ignores autocast."""
    from flash_attn import flash_attn_func

    device = q.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else v.dtype
    q, k, v = (each.transpose(1, 2).to(dtype) for each in (q, k, v))
    out: Tensor = flash_attn_func(q, k, v, dropout_p=dropout, softmax_scale=scale, causal=False)
    return out.transpose(1, 2)

"""Multi-head attention modules around ``ivt2.ops.attention``."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivt2.errors import InputError
from ivt2.nn.norm import RMSNorm
from ivt2.ops.attention import Backend, attention, attention_weights


class SelfAttention(nn.Module):
    """Multi-head self-attention, with RMS-normalised queries and keys where asked.

    The norms see all heads side by side, that is vectors of the full width, before they are split into heads.

    Args:
        dim: Width.
        num_heads: Heads, which share the width.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        qk_norm: Whether queries and keys are normalised.
        backend: See ``ivt2.ops.attention.attention``.

    Raises:
        InputError: if the heads cannot share the width.
    """

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool = False, qk_norm: bool = True, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.backend = backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = RMSNorm(dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B N D"], bias: Float[Tensor, "#B #heads #N N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Attend from every token to every token.

        Args:
            x: Tokens.
            bias: Added to the scores; large negative numbers hide keys.
        """
        q, k, v = (split_heads(each, self.num_heads) for each in self._project(x))
        out: Tensor = self.proj(self._attend(q, k, v, bias))
        return out

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values with all heads side by side."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.q_norm(q), self.k_norm(k), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Outputs of the heads, side by side again."""
        return merge_heads(attention(q, k, v, bias=bias, backend=self.backend))


class CrossAttention(nn.Module):
    """Multi-head attention from queries to other tokens, with a projection to another width.

    Args:
        dim: Width of queries and tokens.
        num_heads: Heads, which share the width.
        out_dim: Width of the result.
        backend: See ``ivt2.ops.attention.attention``.

    Raises:
        InputError: if the heads cannot share the width.
    """

    def __init__(self, dim: int, num_heads: int, out_dim: int, *, backend: Backend = "auto") -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.backend = backend
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, out_dim)

    def forward(
        self, query: Float[Tensor, "B Q D"], key: Float[Tensor, "B N D"], value: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B Q out_dim"]:
        """Attend from each query to all tokens."""
        q, k, v = self.q(query), self.k(key), self.v(value)
        q, k, v = (split_heads(each, self.num_heads) for each in (q, k, v))
        out: Tensor = self.proj(merge_heads(attention(q, k, v, backend=self.backend)))
        return out

    def weights(self, query: Float[Tensor, "B Q D"], key: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads Q N"]:
        """The attention probabilities that ``forward`` uses."""
        return attention_weights(split_heads(self.q(query), self.num_heads), split_heads(self.k(key), self.num_heads))


def split_heads(x: Float[Tensor, "B N D"], num_heads: int) -> Float[Tensor, "B heads N head_dim"]:
    """Cut the width into heads."""
    return torch.unflatten(x, -1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Float[Tensor, "B heads N head_dim"]) -> Float[Tensor, "B N D"]:
    """Put the heads side by side again."""
    return x.transpose(1, 2).flatten(2)


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse a width that the heads cannot share.

    Raises:
        InputError: if the width is not a multiple of the number of heads.
    """
    if num_heads < 1 or dim % num_heads:
        raise InputError(f"width {dim} cannot be shared by {num_heads} heads: use a width that is a multiple of them")

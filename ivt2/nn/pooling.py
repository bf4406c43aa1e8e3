"""From many tokens to one vector."""

from jaxtyping import Float
from torch import Tensor, nn

from ivt2.nn.attention import CrossAttention
from ivt2.ops.attention import Backend


class AttentionPool(nn.Module):
    """Attention from the mean of all tokens to the tokens: no residual, no perceptron.

    ``cross_attn(norm1_q(mean(x)), norm1_k(x), norm1_v(x))`` with three LayerNorms of their own.

    Args:
        dim: Width of the tokens.
        num_heads: Heads of the attention.
        out_dim: Width of the pooled vector.
        attention: See ``ivt2.ops.attention.attention``.
    """

    def __init__(self, dim: int, num_heads: int, out_dim: int, *, attention: Backend = "auto") -> None:
        super().__init__()
        self.norm1_q = nn.LayerNorm(dim, eps=1e-5)
        self.norm1_k = nn.LayerNorm(dim, eps=1e-5)
        self.norm1_v = nn.LayerNorm(dim, eps=1e-5)
        self.cross_attn = CrossAttention(dim, num_heads, out_dim, backend=attention)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B pooled"]:
        """Pool all tokens, the CLS token among them."""
        query = self.norm1_q(tokens.mean(dim=1, keepdim=True))
        pooled: Tensor = self.cross_attn(query, self.norm1_k(tokens), self.norm1_v(tokens))
        return pooled.squeeze(1)

    def attention_map(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N"]:
        """How much the pooled vector attends to each token: mean over the heads, sums to one."""
        query = self.norm1_q(tokens.mean(dim=1, keepdim=True))
        return self.cross_attn.weights(query, self.norm1_k(tokens)).mean(dim=1).squeeze(1)

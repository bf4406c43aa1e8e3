"""The layers of :class:`ivt2.models.bert.Bert`, on texts without their padding.

Every map of a token by itself works on n tokens that stand one after another, whichever text they belong to; attention
alone lays them out as B texts of Q columns. Letters are those of :mod:`ivt2.batch`; S counts tokens of a clip, of width
E, and P texts that look at the B clips of a context.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import gelu

from ivt2.ops.attention import Backend, attention, attention_weights

HIDDEN_TEXT_BIAS = -10000.0
"""Added to attention scores of padding. Source: BERT; cross-attention uses the least number of the dtype instead."""


def padding_bias(
    valid: Bool[Tensor, "B M"] | None, hidden: float | None, dtype: torch.dtype
) -> Float[Tensor, "B 1 1 M"] | None:
    """Additive attention bias: 0 where a key is valid, ``hidden`` where it is not.

    Args:
        valid: True where a key is real; None if all are.
        hidden: bias of the other keys; None means the least finite number of ``dtype``.
        dtype: floating point type of the attention scores.
    """
    if valid is None:
        return None
    floor = torch.finfo(dtype).min if hidden is None else hidden
    bias = torch.zeros(valid.shape, dtype=dtype, device=valid.device).masked_fill(~valid, floor)
    return bias[:, None, None, :]


class Layout(NamedTuple):
    """Where n tokens, one after another, stand in B texts of Q columns."""

    num_texts: int
    num_columns: int
    places: Int64[Tensor, "n"] | None = None
    """Column of the flattened [B, Q] that each token has; None if there is one token for every column."""
    valid: Bool[Tensor, "B Q"] | None = None
    """True where a column may be looked at; None if all may."""

    def spread(self, tokens: Float[Tensor, "n D"]) -> Float[Tensor, "B Q D"]:
        """Give every text its tokens; columns without one are zero."""
        if self.places is not None:
            empty = tokens.new_zeros(self.num_texts * self.num_columns, tokens.shape[1])
            tokens = empty.index_copy(0, self.places, tokens)
        return tokens.view(self.num_texts, self.num_columns, tokens.shape[1])

    def collect(self, tokens: Float[Tensor, "B Q D"]) -> Float[Tensor, "n D"]:
        """Undo :meth:`spread`."""
        flat = tokens.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)


class Selection(NamedTuple):
    """Some positions of padded texts, and how their tokens are laid out for attention."""

    positions: Int64[Tensor, "n"] | None
    """Positions in the flattened [B, L], ascending; None for all of them."""
    layout: Layout


def select(kept: Bool[Tensor, "B L"], valid: Bool[Tensor, "B L"] | None = None) -> Selection:
    """Choose positions; the columns of the layout are as many as the text with most of them needs.

    Args:
        kept: True at the positions to choose. Their tokens keep their order, without gaps.
        valid: True where a text token is real; None if all chosen ones are.
    """
    num_texts, length = kept.shape
    positions = kept.flatten().nonzero().squeeze(1)
    if len(positions) == kept.numel():
        return Selection(None, Layout(num_texts, length, None, valid))
    column = kept.cumsum(dim=1) - 1
    # Attention needs a column even where there is no token at all.
    num_columns = max(int(column.max()) + 1, 1)
    text = torch.arange(num_texts, device=kept.device)[:, None]
    places = (text * num_columns + column).flatten()[positions]
    open_columns = torch.zeros(num_texts * num_columns, dtype=torch.bool, device=kept.device)
    shown = kept if valid is None else valid
    open_columns[places] = shown.flatten()[positions]
    return Selection(positions, Layout(num_texts, num_columns, places, open_columns.view(num_texts, num_columns)))


class Seen(NamedTuple):
    """What one fusion layer looks at, and which text looks at which clip."""

    key: Float[Tensor, "B S D"]
    value: Float[Tensor, "B S D"]
    valid: Bool[Tensor, "B S"] | None = None
    """True where a token is real; None if all are."""
    rows: Int64[Tensor, "R"] | None = None
    """Clips of the last R texts; those before look at clips 0 to B - 1 in turn, over and over."""


class ResidualAttention(nn.Module):
    """Multi-head attention, then dropout, residual and LayerNorm (post-norm).

    Args:
        embed_dim: width D of the tokens that ask.
        num_heads: heads; divides ``embed_dim``.
        context_dim: width of the tokens that are asked; ``embed_dim`` for self-attention.
        hidden_bias: bias on the scores of padded keys; None means the least number of the dtype.
        layer_norm_eps: epsilon of the LayerNorm.
        dropout: ratio of output channels dropped in training.
        attention_dropout: ratio of attention weights dropped in training.
        backend: passed to :func:`ivt2.ops.attention.attention`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        context_dim: int,
        hidden_bias: float | None,
        layer_norm_eps: float,
        dropout: float,
        attention_dropout: float,
        backend: Backend,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.hidden_bias = hidden_bias
        self.attention_dropout = attention_dropout
        self.backend: Backend = backend
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(context_dim, embed_dim)
        self.value = nn.Linear(context_dim, embed_dim)
        self.output = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)

    def among(
        self,
        tokens: Float[Tensor, "n D"],
        layout: Layout,
        asking: Float[Tensor, "m D"],
        asking_layout: Layout,
    ) -> Float[Tensor, "m D"]:
        """Let some tokens attend to all tokens of their text, by self-attention.

        Args:
            tokens: all tokens.
            layout: of all tokens; says which may be looked at.
            asking: those that attend.
            asking_layout: of those.
        """
        query, key, value = asking_layout.spread(self.query(asking)), *map(layout.spread, self.project(tokens))
        mixed = self._mix(query, key, value, layout.valid)
        return self._close(asking, asking_layout.collect(mixed))

    def toward(self, tokens: Float[Tensor, "n D"], layout: Layout, seen: Seen) -> Float[Tensor, "n D"]:
        """Let tokens attend to the clip of their text, by cross-attention.

        Args:
            tokens: those that attend.
            layout: theirs.
            seen: keys and values of clips, and which text looks at which.
        """
        query = layout.spread(self.query(tokens))
        num_chosen = 0 if seen.rows is None else len(seen.rows)
        num_in_turn, num_clips = len(query) - num_chosen, len(seen.key)
        mixed = []
        if num_in_turn:
            # All texts of a clip ask as one, so that its keys need not be copied.
            turns = num_in_turn // num_clips
            asked = query[:num_in_turn].view(turns, num_clips, *query.shape[1:]).transpose(0, 1).flatten(1, 2)
            answer = self._mix(asked, seen.key, seen.value, seen.valid)
            mixed.append(answer.view(num_clips, turns, *query.shape[1:]).transpose(0, 1).flatten(0, 1))
        if seen.rows is not None:
            key, value = (each.index_select(0, seen.rows) for each in (seen.key, seen.value))
            mixed.append(
                self._mix(query[num_in_turn:], key, value, None if seen.valid is None else seen.valid[seen.rows])
            )
        return self._close(tokens, layout.collect(torch.cat(mixed) if mixed else query))

    def project(
        self, context: Float[Tensor, "*batch E"]
    ) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
        """Keys and values of tokens that will be looked at."""
        return self.key(context), self.value(context)

    def weights(
        self, tokens: Float[Tensor, "B L D"], key: Float[Tensor, "B M D"], valid: Bool[Tensor, "B M"] | None
    ) -> Float[Tensor, "B heads L M"]:
        """Attention weights from tokens to keys, without dropout; they sum to 1 over M."""
        query = self._split_heads(self.query(tokens))
        bias = padding_bias(valid, self.hidden_bias, query.dtype)
        return attention_weights(query, self._split_heads(key), bias=bias)

    def _mix(
        self,
        query: Float[Tensor, "B Q D"],
        key: Float[Tensor, "B M D"],
        value: Float[Tensor, "B M D"],
        valid: Bool[Tensor, "B M"] | None,
    ) -> Float[Tensor, "B Q D"]:
        bias = padding_bias(valid, self.hidden_bias, query.dtype)
        dropout = self.attention_dropout if self.training else 0.0
        heads = (self._split_heads(each) for each in (query, key, value))
        mixed = attention(*heads, bias=bias, dropout=dropout, backend=self.backend)
        return mixed.transpose(1, 2).flatten(2)

    def _close(self, tokens: Float[Tensor, "n D"], mixed: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        normed: Tensor = self.norm(self.dropout(self.output(mixed)) + tokens)
        return normed

    def _split_heads(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N head_dim"]:
        batch, length, _ = tokens.shape
        return tokens.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear maps with exact GELU between them, then dropout, residual and LayerNorm (post-norm)."""

    def __init__(self, *, embed_dim: int, mlp_dim: int, layer_norm_eps: float, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)

    def forward(self, tokens: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Transform every token by itself."""
        normed: Tensor = self.norm(self.dropout(self.fc2(gelu(self.fc1(tokens)))) + tokens)
        return normed


class TextLayer(nn.Module):
    """Self-attention and MLP."""

    def __init__(self, self_attention: ResidualAttention, feed_forward: FeedForward) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.feed_forward = feed_forward

    def forward(self, tokens: Float[Tensor, "n D"], layout: Layout) -> Float[Tensor, "n D"]:
        """Mix the tokens of each text."""
        mixed: Tensor = self.feed_forward(self.self_attention.among(tokens, layout, tokens, layout))
        return mixed


class FusionLayer(nn.Module):
    """Self-attention, cross-attention to the tokens of a clip, and MLP."""

    ENTRY_POINTS: ClassVar[tuple[str, ...]] = ("project",)
    """Methods beside ``forward`` that read parameters: what a sharded engine has to know."""

    def __init__(
        self, self_attention: ResidualAttention, cross_attention: ResidualAttention, feed_forward: FeedForward
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward

    def project(self, context: Float[Tensor, "B S E"]) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S D"]]:
        """Keys and values of the cross-attention."""
        return self.cross_attention.project(context)

    def forward(
        self,
        tokens: Float[Tensor, "n D"],
        layout: Layout,
        seen: Seen,
        asking: Int64[Tensor, "m"] | None = None,
        asking_layout: Layout | None = None,
    ) -> Float[Tensor, "m D"]:
        """Mix the tokens of each text, then let them look at the clip.

        Args:
            tokens: all tokens.
            layout: theirs.
            seen: what they look at.
            asking: which tokens are computed, by their place in ``tokens``; None for all.
            asking_layout: theirs.
        """
        asked = tokens if asking is None else tokens.index_select(0, asking)
        asking_layout = layout if asking_layout is None else asking_layout
        asked = self.self_attention.among(tokens, layout, asked, asking_layout)
        mixed: Tensor = self.feed_forward(self.cross_attention.toward(asked, asking_layout, seen))
        return mixed

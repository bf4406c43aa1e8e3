"""BERT whose last layers also look at visual tokens: the text and fusion encoder of stage 2.

Layers below ``fusion_layer`` read text alone; the others have a cross-attention between self-attention and MLP.
Letters are those of :mod:`ivt2.batch`; E is the width of the visual tokens.
"""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from torch.utils.checkpoint import checkpoint

from ivt2.errors import InputError
from ivt2.ops.attention import Backend, attention, attention_weights

HIDDEN_TEXT_BIAS = -10000.0
"""Added to attention scores of padding. Source: BERT; cross-attention uses the least number of the dtype instead."""

INIT_STD = 0.02
"""Standard deviation of new weights. Source: BERT (arXiv:1810.04805), released code."""


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


class Embedding(nn.Module):
    """Sum of word, position and token-type vectors, normalised."""

    def __init__(
        self,
        *,
        vocab_size: int,
        embed_dim: int,
        max_positions: int,
        type_vocab_size: int,
        pad_id: int,
        layer_norm_eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, embed_dim, padding_idx=pad_id)
        self.position = nn.Embedding(max_positions, embed_dim)
        self.token_type = nn.Embedding(type_vocab_size, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, input_ids: Int64[Tensor, "B L"], token_type_ids: Int64[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L D"]:
        """Embed tokens; without ``token_type_ids`` all are of type 0."""
        length = input_ids.shape[1]
        if length > self.position.num_embeddings:
            raise InputError(
                f"text of {length} tokens exceeds max_positions={self.position.num_embeddings}: "
                "lower the tokenizer's max_length"
            )
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        positions = torch.arange(length, device=input_ids.device)
        tokens = self.word(input_ids) + self.token_type(token_type_ids) + self.position(positions)
        embedded: Tensor = self.dropout(self.norm(tokens))
        return embedded


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

    def _split_heads(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N head_dim"]:
        batch, length, _ = tokens.shape
        return tokens.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)

    def forward(
        self, tokens: Float[Tensor, "B L D"], context: Float[Tensor, "B M E"], valid: Bool[Tensor, "B M"] | None
    ) -> Float[Tensor, "B L D"]:
        """Let ``tokens`` attend to ``context``, of which ``valid`` are real (None: all)."""
        query, key, value = (
            self._split_heads(part) for part in (self.query(tokens), self.key(context), self.value(context))
        )
        bias = padding_bias(valid, self.hidden_bias, query.dtype)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = attention(query, key, value, bias=bias, dropout=dropout, backend=self.backend)
        output = self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
        normed: Tensor = self.norm(output + tokens)
        return normed

    def weights(
        self, tokens: Float[Tensor, "B L D"], context: Float[Tensor, "B M E"], valid: Bool[Tensor, "B M"] | None
    ) -> Float[Tensor, "B heads L M"]:
        """Attention weights that :meth:`forward` uses, without dropout; they sum to 1 over M."""
        query, key = self._split_heads(self.query(tokens)), self._split_heads(self.key(context))
        return attention_weights(query, key, bias=padding_bias(valid, self.hidden_bias, query.dtype))


class FeedForward(nn.Module):
    """Two linear maps with exact GELU between them, then dropout, residual and LayerNorm (post-norm)."""

    def __init__(self, *, embed_dim: int, mlp_dim: int, layer_norm_eps: float, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)

    def forward(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Transform every token by itself."""
        normed: Tensor = self.norm(self.dropout(self.fc2(gelu(self.fc1(tokens)))) + tokens)
        return normed


class TextLayer(nn.Module):
    """Self-attention and MLP."""

    def __init__(self, self_attention: ResidualAttention, feed_forward: FeedForward) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.feed_forward = feed_forward

    def forward(self, tokens: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B L D"]:
        """Mix the tokens of each text."""
        mixed: Tensor = self.feed_forward(self.self_attention(tokens, tokens, valid))
        return mixed


class FusionLayer(nn.Module):
    """Self-attention, cross-attention to visual tokens, and MLP."""

    def __init__(
        self, self_attention: ResidualAttention, cross_attention: ResidualAttention, feed_forward: FeedForward
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward

    def forward(
        self,
        tokens: Float[Tensor, "B L D"],
        valid: Bool[Tensor, "B L"] | None,
        vision_tokens: Float[Tensor, "B N E"],
        vision_valid: Bool[Tensor, "B N"] | None,
    ) -> Float[Tensor, "B L D"]:
        """Mix the tokens of each text, then let them look at the clip."""
        tokens = self.self_attention(tokens, tokens, valid)
        tokens = self.cross_attention(tokens, vision_tokens, vision_valid)
        mixed: Tensor = self.feed_forward(tokens)
        return mixed


class MaskedLMHead(nn.Module):
    """Linear, exact GELU, LayerNorm, then a decoder that shares the word embedding's matrix."""

    def __init__(self, *, embed_dim: int, vocab_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(
        self, tokens: Float[Tensor, "*batch D"], word_embedding: Float[Tensor, "vocabulary D"]
    ) -> Float[Tensor, "*batch vocabulary"]:
        """Logits over the vocabulary."""
        return linear(self.norm(gelu(self.dense(tokens))), word_embedding, self.bias)


class Bert(nn.Module):
    """BERT with fusion layers.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        embed_dim: width D of the tokens.
        depth: number of layers.
        num_heads: attention heads; divides ``embed_dim``.
        mlp_dim: hidden width of the MLPs.
        max_positions: longest text, in tokens.
        fusion_layer: index of the first layer with cross-attention; ``depth`` for text alone.
        encoder_width: width E of the visual tokens.
        layer_norm_eps: epsilon of every LayerNorm.
        dropout: ratio of channels dropped after the embedding, attention and MLP in training.
        attention_dropout: ratio of attention weights dropped in training.
        type_vocab_size: number of token types (sentence A and B of BERT).
        pad_id: id of padding; its word vector starts at zero and gets no gradient as an input.
        pooler: add BERT's pooler, see :meth:`pool`.
        masked_lm: add the head of masked language modelling, see :meth:`predict_tokens`.
        attention: back end of :func:`ivt2.ops.attention.attention`.
        init_std: standard deviation of weights at the start; BERT's 0.02 is too small for a narrow model.
        checkpointing: recompute layers in the backward pass of training instead of keeping their activations.

    Raises:
        InputError: if ``num_heads`` does not divide ``embed_dim`` or ``fusion_layer`` is outside [0, depth].

    Source: BERT (arXiv:1810.04805); InternVideo2 (arXiv:2403.15377), stage 2, where BERT-large has ``fusion_layer`` 19.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        max_positions: int,
        fusion_layer: int,
        encoder_width: int,
        layer_norm_eps: float = 1e-12,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        type_vocab_size: int = 2,
        pad_id: int = 0,
        pooler: bool = False,
        masked_lm: bool = True,
        attention: Backend = "auto",
        init_std: float = INIT_STD,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"num_heads={num_heads} does not divide embed_dim={embed_dim}: choose a divisor")
        if not 0 <= fusion_layer <= depth:
            raise InputError(f"fusion_layer={fusion_layer} is outside [0, depth={depth}]: use depth for text alone")
        self.vocab_size = vocab_size
        self.embed_dim = embed_dim
        self.fusion_layer = fusion_layer
        self.encoder_width = encoder_width
        self.max_positions = max_positions
        self.checkpointing = checkpointing
        self.embedding = Embedding(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            max_positions=max_positions,
            type_vocab_size=type_vocab_size,
            pad_id=pad_id,
            layer_norm_eps=layer_norm_eps,
            dropout=dropout,
        )

        def attend(context_dim: int, hidden_bias: float | None) -> ResidualAttention:
            return ResidualAttention(
                embed_dim=embed_dim,
                num_heads=num_heads,
                context_dim=context_dim,
                hidden_bias=hidden_bias,
                layer_norm_eps=layer_norm_eps,
                dropout=dropout,
                attention_dropout=attention_dropout,
                backend=attention,
            )

        def feed_forward() -> FeedForward:
            return FeedForward(embed_dim=embed_dim, mlp_dim=mlp_dim, layer_norm_eps=layer_norm_eps, dropout=dropout)

        self.layers = nn.ModuleList()
        for index in range(depth):
            self_attention = attend(embed_dim, HIDDEN_TEXT_BIAS)
            if index < fusion_layer:
                self.layers.append(TextLayer(self_attention, feed_forward()))
            else:
                self.layers.append(FusionLayer(self_attention, attend(encoder_width, None), feed_forward()))
        self.pooler = nn.Linear(embed_dim, embed_dim) if pooler else None
        self.masked_lm_head = (
            MaskedLMHead(embed_dim=embed_dim, vocab_size=vocab_size, layer_norm_eps=layer_norm_eps)
            if masked_lm
            else None
        )
        self.apply(partial(_initialize, std=init_std))

    def encode_text(
        self,
        input_ids: Int64[Tensor, "B L"],
        valid: Bool[Tensor, "B L"] | None = None,
        token_type_ids: Int64[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Token states after the layers below ``fusion_layer``.

        Args:
            input_ids: token ids.
            valid: True where a token is real; None if all are.
            token_type_ids: sentence of each token; None for 0 everywhere.

        Raises:
            InputError: if the text is longer than ``max_positions``.
        """
        tokens: Tensor = self.embedding(input_ids, token_type_ids)
        for layer in self.layers[: self.fusion_layer]:
            tokens = self._run(layer, tokens, valid)
        return tokens

    def fuse(
        self,
        text_tokens: Float[Tensor, "B L D"],
        valid: Bool[Tensor, "B L"] | None,
        vision_tokens: Float[Tensor, "B N E"],
        vision_valid: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Token states after the layers from ``fusion_layer`` on, which also look at ``vision_tokens``.

        Args:
            text_tokens: result of :meth:`encode_text`.
            valid: True where a text token is real; None if all are.
            vision_tokens: tokens of the clip that each text is paired with.
            vision_valid: True where a visual token is real; None if all are.
        """
        tokens = text_tokens
        for layer in self.layers[self.fusion_layer :]:
            tokens = self._run(layer, tokens, valid, vision_tokens, vision_valid)
        return tokens

    def forward(
        self,
        input_ids: Int64[Tensor, "B L"],
        valid: Bool[Tensor, "B L"] | None,
        vision_tokens: Float[Tensor, "B N E"],
        vision_valid: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """All layers: :meth:`encode_text`, then :meth:`fuse`."""
        return self.fuse(self.encode_text(input_ids, valid), valid, vision_tokens, vision_valid)

    def predict_tokens(self, tokens: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits over the vocabulary; ``tokens`` may be a selection of positions, which saves memory.

        Raises:
            RuntimeError: if the network was built with ``masked_lm=False``.
        """
        if self.masked_lm_head is None:
            raise RuntimeError("predict_tokens needs a Bert built with masked_lm=True")
        logits: Tensor = self.masked_lm_head(tokens, self.embedding.word.weight)
        return logits

    def pool(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B D"]:
        """BERT's sentence feature, tanh of a linear map of the first token (stage 2 takes that token itself).

        Raises:
            RuntimeError: if the network was built with ``pooler=False``.
        """
        if self.pooler is None:
            raise RuntimeError("pool needs a Bert built with pooler=True")
        return torch.tanh(self.pooler(tokens[:, 0]))

    def _run(self, layer: nn.Module, *arguments: Tensor | None) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            tokens: Tensor = checkpoint(layer, *arguments, use_reentrant=False)
        else:
            tokens = layer(*arguments)
        return tokens


class FusionAttention(NamedTuple):
    """Attention weights of one fusion layer."""

    text: Float[Tensor, "B heads L L"]
    vision: Float[Tensor, "B heads L N"]


def fusion_attention(
    bert: Bert,
    text_tokens: Float[Tensor, "B L D"],
    valid: Bool[Tensor, "B L"] | None,
    vision_tokens: Float[Tensor, "B N E"],
    vision_valid: Bool[Tensor, "B N"] | None = None,
) -> list[FusionAttention]:
    """Where each fusion layer looks, for figures and tests; arguments as in :meth:`Bert.fuse`, without dropout."""
    maps = []
    tokens = text_tokens
    for layer in bert.layers[bert.fusion_layer :]:
        assert isinstance(layer, FusionLayer)
        text = layer.self_attention.weights(tokens, tokens, valid)
        after_text = layer.self_attention(tokens, tokens, valid)
        vision = layer.cross_attention.weights(after_text, vision_tokens, vision_valid)
        maps.append(FusionAttention(text, vision))
        tokens = layer(tokens, valid, vision_tokens, vision_valid)
    return maps


def _initialize(module: nn.Module, *, std: float) -> None:
    """Linear and embedding weights from N(0, std), biases and the padding vector zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()

"""BERT whose last layers also look at visual tokens: the text and fusion encoder of stage 2.

Layers below ``fusion_layer`` read text alone; the others have a cross-attention between self-attention and MLP.
Letters are those of :mod:`ivt2.batch`; S counts the tokens of a clip or a sound, of width E, and P texts that look at B
clips.
"""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from torch.utils.checkpoint import checkpoint

from ivt2.batch import Vocabulary
from ivt2.errors import InputError
from ivt2.models.bert_layers import (
    HIDDEN_TEXT_BIAS,
    FeedForward,
    FusionLayer,
    Layout,
    ResidualAttention,
    Seen,
    Selection,
    TextLayer,
    select,
)
from ivt2.models.text_tower import check_padding, check_size
from ivt2.ops.attention import Backend

INIT_STD = 0.02
"""Standard deviation of new weights. Source: BERT (arXiv:1810.04805), released code."""


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


class Context(NamedTuple):
    """What texts look at: keys and values of B clips or sounds for every fusion layer."""

    keys: tuple[Float[Tensor, "B S D"], ...]
    values: tuple[Float[Tensor, "B S D"], ...]
    valid: Bool[Tensor, "B S"] | None = None
    """True where a token is real; None if all are."""


def join_contexts(first: Context, second: Context) -> Context:
    """Let texts look at the tokens of both, those of the first before those of the second.

    It is what :meth:`Bert.project` makes of the joined tokens, without projecting them again.

    Raises:
        ValueError: if one of them has padding.
    """
    if first.valid is not None or second.valid is not None:
        raise ValueError("contexts with padding cannot be joined: project the joined tokens")
    keys, values = (
        tuple(torch.cat(pair, dim=1) for pair in zip(*parts, strict=True))
        for parts in ((first.keys, second.keys), (first.values, second.values))
    )
    return Context(keys, values)


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
        packed: leave padding out of all that is computed; False computes it too, as the reference does.

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
        packed: bool = True,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"num_heads={num_heads} does not divide embed_dim={embed_dim}: choose a divisor")
        if not 0 <= fusion_layer <= depth:
            raise InputError(f"fusion_layer={fusion_layer} is outside [0, depth={depth}]: use depth for text alone")
        self.vocab_size = vocab_size
        self.pad_id = pad_id
        self.embed_dim = embed_dim
        self.fusion_layer = fusion_layer
        self.encoder_width = encoder_width
        self.max_positions = max_positions
        self.checkpointing = checkpointing
        self.packed = packed
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

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Refuse a tokenizer whose tokens have no vectors, or another padding.

        Raises:
            InputError: if it has too many tokens or pads with another one.
        """
        check_size(vocabulary, self.vocab_size)
        check_padding(vocabulary, self.pad_id)

    def encode_text(
        self,
        input_ids: Int64[Tensor, "B L"],
        valid: Bool[Tensor, "B L"] | None = None,
        token_type_ids: Int64[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Token states after the layers below ``fusion_layer``, 0 for padding.

        Args:
            input_ids: token ids.
            valid: True where a token is real; None if all are.
            token_type_ids: sentence of each token; None for 0 everywhere.

        Raises:
            InputError: if the text is longer than ``max_positions``.
        """
        padded: Tensor = self.embedding(input_ids, token_type_ids)
        positions, layout = self._select(padded, valid)
        tokens = _at(padded, positions)
        for layer in self.layers[: self.fusion_layer]:
            tokens = self._run(layer, tokens, layout)
        return _back(tokens, padded, positions)

    def project(self, tokens: Float[Tensor, "B S E"], valid: Bool[Tensor, "B S"] | None = None) -> Context:
        """Keys and values of each fusion layer, for texts that look at these tokens.

        Args:
            tokens: tokens of clips or sounds.
            valid: True where one is real; None if all are.
        """
        projected = [layer.project(tokens) for layer in self._fusion_layers()]
        return Context(tuple(key for key, _ in projected), tuple(value for _, value in projected), valid)

    def fuse(
        self,
        text_tokens: Float[Tensor, "P L D"],
        valid: Bool[Tensor, "P L"] | None,
        context: Context,
        rows: Int64[Tensor, "R"] | None = None,
    ) -> Float[Tensor, "P L D"]:
        """Token states after the layers from ``fusion_layer`` on, which also look at a context; 0 for padding.

        Args:
            text_tokens: result of :meth:`encode_text`.
            valid: True where a text token is real; None if all are.
            context: result of :meth:`project` on B clips.
            rows: clip of each of the last R texts. Those before look at clips 0 to B - 1 in turn, over and over, which
                costs less than to name the same clips here.

        Raises:
            ValueError: if the texts before the last R are no multiple of B.
        """
        _check_turns(len(text_tokens), context, rows)
        positions, layout = self._select(text_tokens, valid)
        tokens = _at(text_tokens, positions)
        for layer, seen in self.fusion(context, rows):
            tokens = self._run(layer, tokens, layout, seen)
        return _back(tokens, text_tokens, positions)

    def fuse_at(
        self,
        text_tokens: Float[Tensor, "P L D"],
        valid: Bool[Tensor, "P L"] | None,
        context: Context,
        rows: Int64[Tensor, "R"] | None,
        wanted: Bool[Tensor, "P L"],
    ) -> Float[Tensor, "n D"]:
        """What :meth:`fuse` says at the wanted positions, in their order; the last layer computes no others.

        Args:
            text_tokens: as in :meth:`fuse`.
            valid: as in :meth:`fuse`.
            context: as in :meth:`fuse`.
            rows: as in :meth:`fuse`.
            wanted: True at the n positions that are asked for.
        """
        _check_turns(len(text_tokens), context, rows)
        layers = self.fusion(context, rows)
        if not layers:
            return text_tokens[wanted]
        positions, layout = self._select(text_tokens, valid, wanted)
        tokens = _at(text_tokens, positions)
        for layer, seen in layers[:-1]:
            tokens = self._run(layer, tokens, layout, seen)
        layer, seen = layers[-1]
        among = wanted.flatten() if positions is None else wanted.flatten()[positions]
        return self._run(layer, tokens, layout, seen, among.nonzero().squeeze(1), select(wanted).layout)

    def forward(
        self,
        input_ids: Int64[Tensor, "B L"],
        valid: Bool[Tensor, "B L"] | None,
        vision_tokens: Float[Tensor, "B S E"],
        vision_valid: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """All layers: :meth:`encode_text`, then :meth:`fuse`, each text with its own clip."""
        return self.fuse(self.encode_text(input_ids, valid), valid, self.project(vision_tokens, vision_valid))

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

    def _select(self, tokens: Tensor, valid: Tensor | None, wanted: Tensor | None = None) -> Selection:
        """Positions to compute: all, or the real ones and those that are wanted all the same."""
        if valid is None or not self.packed:
            return Selection(None, Layout(len(tokens), tokens.shape[1], valid=valid))
        return select(valid) if wanted is None else select(valid | wanted, valid)

    def fusion(self, context: Context, rows: Tensor | None = None) -> list[tuple[FusionLayer, Seen]]:
        """Each fusion layer with what it looks at."""
        pairs = zip(context.keys, context.values, strict=True)
        seen = (Seen(key, value, context.valid, rows) for key, value in pairs)
        return list(zip(self._fusion_layers(), seen, strict=True))

    def _fusion_layers(self) -> list[FusionLayer]:
        return [layer for layer in self.layers if isinstance(layer, FusionLayer)]

    def _run(self, layer: nn.Module, *arguments: object) -> Tensor:
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
    bert: Bert, text_tokens: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"] | None, context: Context
) -> list[FusionAttention]:
    """Where each fusion layer looks, for figures and tests; arguments as in :meth:`Bert.fuse`, without dropout."""
    maps = []
    layout = Layout(len(text_tokens), text_tokens.shape[1], valid=valid)
    tokens = text_tokens.flatten(0, 1)
    for layer, seen in bert.fusion(context):
        attend = layer.self_attention
        text = attend.weights(layout.spread(tokens), layout.spread(attend.key(tokens)), valid)
        after_text = attend.among(tokens, layout, tokens, layout)
        vision = layer.cross_attention.weights(layout.spread(after_text), seen.key, seen.valid)
        maps.append(FusionAttention(text, vision))
        tokens = layer(tokens, layout, seen)
    return maps


def _at(padded: Float[Tensor, "B L D"], positions: Int64[Tensor, "n"] | None) -> Float[Tensor, "n D"]:
    flat = padded.flatten(0, 1)
    return flat if positions is None else flat.index_select(0, positions)


def _back(
    tokens: Float[Tensor, "n D"], padded: Float[Tensor, "B L D"], positions: Int64[Tensor, "n"] | None
) -> Float[Tensor, "B L D"]:
    if positions is not None:
        tokens = tokens.new_zeros(padded.shape[:2].numel(), tokens.shape[1]).index_copy(0, positions, tokens)
    return tokens.view(padded.shape)


def _check_turns(num_texts: int, context: Context, rows: Tensor | None) -> None:
    num_in_turn = num_texts - (0 if rows is None else len(rows))
    num_clips = len(context.keys[0]) if context.keys else max(num_in_turn, 1)
    if num_in_turn and (num_clips == 0 or num_in_turn % num_clips):
        raise ValueError(f"{num_in_turn} texts cannot look at {num_clips} clips in turn: name the clip of each")


def _initialize(module: nn.Module, *, std: float) -> None:
    """Linear and embedding weights from N(0, std), biases and the padding vector zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()

"""MobileCLIP's text encoder: the text tower of the small CLIP models.

M texts of L tokens, P trained positions, D width, E width of the shared space.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ivt2.batch import Vocabulary
from ivt2.errors import InputError
from ivt2.models.bert_layers import padding_bias
from ivt2.models.text_tower import check_padding, check_size, last_position
from ivt2.nn.block import Block
from ivt2.nn.init import init_weights
from ivt2.ops.attention import Backend
from ivt2.ops.position import resize_position_table

MLP_MULTIPLE = 16
"""Hidden widths are rounded up to a multiple of it. Source: MobileCLIP (arXiv:2311.17049), released code."""

PAD_ID = 0

Value = TypeVar("Value", int, float)


class MobileClipText(nn.Module):
    """Transformer over CLIP's byte-pair tokens; a text is read off at its end token.

    LayerNorms need no option to run in float32: torch's computes in float32 whatever the dtype of its input.

    Args:
        vocab_size: Number of tokens.
        context_length: Trained positions P. Texts of another length get the position table resized to theirs, as in
            the reference: pad to ``context_length`` to give each token its trained place.
        embed_dim: Width D.
        depth: Number of layers.
        num_heads: Heads of each layer, one number or one for each layer.
        mlp_ratio: Hidden width of the perceptrons over D, one number or one for each layer; the width is rounded up to
            a multiple of 16.
        projection_dim: Width E of the feature.
        causal: Whether a token looks at itself and at those before it alone (MobileCLIP-B), or at all tokens.
        position_table: Whether positions are learned; otherwise tokens have no position.
        pool: Token that a text is read off at: ``argmax``, the one of the greatest id, which CLIP's end token has, or
            ``last``, the last one before the padding of zeros, for other tokenizers.
        init_std: Standard deviation of the linear weights at the start; a narrow model needs more, as the video
            encoder does.
        attention: Back end, see ``ivt2.ops.attention.attention``.

    Raises:
        InputError: if there is not one number for each layer, or heads cannot share the width.

    Source: Vasu et al., "MobileCLIP", CVPR 2024; reference multi_modality, mobileclip text encoder (``base``).
    """

    pos_embed: nn.Parameter | None

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        embed_dim: int,
        depth: int,
        num_heads: int | Sequence[int],
        mlp_ratio: float | Sequence[float] = 4.0,
        projection_dim: int,
        causal: bool = True,
        position_table: bool = True,
        pool: Literal["argmax", "last"] = "argmax",
        init_std: float = 0.02,
        attention: Backend = "auto",
    ) -> None:
        super().__init__()
        heads = _for_each_layer("num_heads", num_heads, depth)
        ratios = _for_each_layer("mlp_ratio", mlp_ratio, depth)
        self.context_length, self.embed_dim, self.projection_dim = context_length, embed_dim, projection_dim
        self.vocab_size, self.causal, self.pool, self.init_std = vocab_size, causal, pool, init_std
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        table = nn.Parameter(torch.empty(1, context_length, embed_dim)) if position_table else None
        self.register_parameter("pos_embed", table)
        self.layers = nn.ModuleList(
            Block(
                embed_dim,
                layer_heads,
                mlp_ratio=_exact_ratio(embed_dim, ratio),
                qkv_bias=True,
                qk_norm=False,
                layer_scale_init=None,
                gelu="erf",
                attention=attention,
                norm=nn.LayerNorm,
            )
            for layer_heads, ratio in zip(heads, ratios, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.projection = nn.Parameter(torch.empty(embed_dim, projection_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start all weights anew; call it after ``to_empty`` where the model came from meta."""
        self.apply(partial(init_weights, std=self.init_std))
        std = self.embed_dim**-0.5
        nn.init.normal_(self.embedding.weight, std=std)
        nn.init.normal_(self.projection, std=std)
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed, std=std)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must not touch: all. Source: reference, CLIP post-training."""
        return {name for name, _ in self.named_parameters()}

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Refuse a tokenizer whose texts would be read off at the wrong place.

        Raises:
            InputError: if it has too many tokens, or ids that do not suit ``pool``.
        """
        check_size(vocabulary, self.vocab_size)
        if self.pool == "argmax" and vocabulary.sep_id != vocabulary.size - 1:
            raise InputError(
                f"the tokenizer's end token is {vocabulary.sep_id} of {vocabulary.size}, but text_encoder.pool=argmax "
                "reads a text off at the greatest id: take CLIP's tokenizer, or text_encoder.pool=last"
            )
        if self.pool == "last":
            check_padding(vocabulary, PAD_ID)

    def embed(self, input_ids: Int64[Tensor, "M L"]) -> Float[Tensor, "M L D"]:
        """Vectors of the tokens plus those of their positions."""
        tokens: Tensor = self.embedding(input_ids)
        if self.pos_embed is None:
            return tokens
        length = input_ids.shape[1]
        table: Tensor = self.pos_embed
        if length != self.context_length:
            table = resize_position_table(
                table, source_frames=self.context_length, num_frames=length, grid_size=1, num_prefix=0
            )
        return tokens + table

    def encode_tokens(
        self, input_ids: Int64[Tensor, "M L"], valid: Bool[Tensor, "M L"] | None = None
    ) -> Float[Tensor, "M L D"]:
        """States of all tokens after the last norm.

        Args:
            input_ids: Tokens, padded on the right.
            valid: True where a token is real; None if all are. A causal tower ignores it: no real token looks at the
                padding behind it.
        """
        tokens = self.embed(input_ids)
        bias = _causal_bias(tokens) if self.causal else padding_bias(valid, None, tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, bias)
        normed: Tensor = self.norm(tokens)
        return normed

    def forward(
        self, input_ids: Int64[Tensor, "M L"], valid: Bool[Tensor, "M L"] | None = None
    ) -> Float[Tensor, "M E"]:
        """Feature of each text, not normalised: the state of its end token, projected; arguments as above."""
        tokens = self.encode_tokens(input_ids, valid)
        end = input_ids.argmax(dim=1) if self.pool == "argmax" else last_position(input_ids, PAD_ID)
        feature: Tensor = tokens[torch.arange(len(tokens), device=end.device), end] @ self.projection
        return feature


def _causal_bias(tokens: Tensor) -> Tensor:
    length = tokens.shape[1]
    hidden = torch.full((length, length), -torch.inf, dtype=tokens.dtype, device=tokens.device)
    return hidden.triu(1)[None, None]


def _for_each_layer(name: str, value: Value | Sequence[Value], depth: int) -> list[Value]:
    if not isinstance(value, Sequence):
        return [value] * depth
    if len(value) != depth:
        raise InputError(f"{name} has {len(value)} numbers for depth={depth} layers: give one for each, or one for all")
    return list(value)


def _exact_ratio(embed_dim: int, ratio: float) -> float:
    """Ratio whose product with the width ``Block`` truncates to the hidden width, rounded up."""
    hidden_dim = math.ceil(embed_dim * ratio / MLP_MULTIPLE) * MLP_MULTIPLE
    # The half keeps rounding errors of the product away from the next lower integer.
    return (hidden_dim + 0.5) / embed_dim

"""A training step of stage 2 as plainly as the reference writes it, to measure ours against.

Three passes over the text: clean captions through the text layers for contrast, three sets of pairs through the fusion
layers for matching, corrupted captions through all layers for masked words. Padding is computed like any word, each
text projects the keys and values of its own clip, softmax attention is spelt out, and the vocabulary is scored at every
position. It computes what :class:`ivt2.modules.stage2.Stage2Module` computes with the terms ``vtc``, ``vtm`` and
``mlm``, and parameters have the same names, so that weights of the one load strictly into the other.

B clips, Nv visible tokens of width E, L text tokens of width D, P = 3 B pairs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, linear, normalize

from ivt2.cli.benchmarks.plain_student import PlainEncoder
from ivt2.losses.matching import hard_negatives
from ivt2.models.internvideo2 import InternVideo2

PADDING_SCORE = -10000.0


class PlainStep(NamedTuple):
    """Clips, captions, and what chance says about them."""

    video: Float[Tensor, "B T 3 H W"]
    masked: Bool[Tensor, "B N"]
    input_ids: Int64[Tensor, "B L"]
    valid: Bool[Tensor, "B L"]
    corrupted: Int64[Tensor, "B L"]
    labels: Int64[Tensor, "B L"]
    """The hidden words, -100 elsewhere."""
    noise: Float[Tensor, "B 2"]
    """Uniform draws by which wrong clips and wrong captions are found."""


@dataclass(frozen=True, kw_only=True)
class PlainTextSizes:
    """What the plain text encoder is built from; the names are those of the constructor of ours."""

    vocab_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    max_positions: int
    fusion_layer: int
    encoder_width: int
    dropout: float = 0.0
    attention_dropout: float = 0.0


class PlainEmbedding(nn.Module):
    """Sum of three tables, normalised."""

    def __init__(self, sizes: PlainTextSizes) -> None:
        super().__init__()
        self.word = nn.Embedding(sizes.vocab_size, sizes.embed_dim, padding_idx=0)
        self.position = nn.Embedding(sizes.max_positions, sizes.embed_dim)
        self.token_type = nn.Embedding(2, sizes.embed_dim)
        self.norm = nn.LayerNorm(sizes.embed_dim, eps=1e-12)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, input_ids: Int64[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Embed."""
        position = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.word(input_ids) + self.token_type(torch.zeros_like(input_ids)) + self.position(position)
        out: Tensor = self.dropout(self.norm(x))
        return out


class PlainTextAttention(nn.Module):
    """Attention with the scores written out, then dropout, residual and norm."""

    def __init__(self, sizes: PlainTextSizes, context_dim: int) -> None:
        super().__init__()
        dim = sizes.embed_dim
        self.num_heads = sizes.num_heads
        self.query = nn.Linear(dim, dim)
        self.key, self.value = nn.Linear(context_dim, dim), nn.Linear(context_dim, dim)
        self.output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.attn_drop, self.dropout = nn.Dropout(sizes.attention_dropout), nn.Dropout(sizes.dropout)

    def forward(
        self, x: Float[Tensor, "B L D"], context: Float[Tensor, "B M E"], bias: Float[Tensor, "B 1 1 M"]
    ) -> Float[Tensor, "B L D"]:
        """Attend from every token to every token of the context."""
        q, k, v = (
            part.view(*part.shape[:2], self.num_heads, -1).permute(0, 2, 1, 3)
            for part in (self.query(x), self.key(context), self.value(context))
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
        mixed = (self.attn_drop(scores.softmax(dim=-1)) @ v).permute(0, 2, 1, 3).reshape(x.shape)
        out: Tensor = self.norm(self.dropout(self.output(mixed)) + x)
        return out


class PlainFeedForward(nn.Module):
    """Two linear layers, then dropout, residual and norm."""

    def __init__(self, sizes: PlainTextSizes) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(sizes.embed_dim, sizes.mlp_dim), nn.Linear(sizes.mlp_dim, sizes.embed_dim)
        self.dropout, self.norm = nn.Dropout(sizes.dropout), nn.LayerNorm(sizes.embed_dim, eps=1e-12)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Apply."""
        out: Tensor = self.norm(self.dropout(self.fc2(gelu(self.fc1(x)))) + x)
        return out


class PlainTextLayer(nn.Module):
    """Self-attention, cross-attention in fusion layers, perceptron."""

    def __init__(self, sizes: PlainTextSizes, *, fusion: bool) -> None:
        super().__init__()
        self.self_attention = PlainTextAttention(sizes, sizes.embed_dim)
        if fusion:
            self.cross_attention = PlainTextAttention(sizes, sizes.encoder_width)
        self.feed_forward = PlainFeedForward(sizes)

    def forward(
        self, x: Float[Tensor, "B L D"], bias: Float[Tensor, "B 1 1 L"], vision: Float[Tensor, "B Nv E"] | None
    ) -> Float[Tensor, "B L D"]:
        """Run all parts."""
        x = self.self_attention(x, x, bias)
        if vision is not None:
            x = self.cross_attention(x, vision, x.new_zeros(len(x), 1, 1, vision.shape[1]))
        out: Tensor = self.feed_forward(x)
        return out


class PlainWordHead(nn.Module):
    """Scores of all words, by the matrix of the embedding."""

    def __init__(self, sizes: PlainTextSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(sizes.embed_dim, sizes.embed_dim)
        self.norm = nn.LayerNorm(sizes.embed_dim, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(sizes.vocab_size))

    def forward(self, x: Float[Tensor, "B L D"], words: Float[Tensor, "vocabulary D"]) -> Tensor:
        """Score."""
        return linear(self.norm(gelu(self.dense(x))), words, self.bias)


class PlainTextEncoder(nn.Module):
    """BERT whose last layers look at a clip."""

    def __init__(self, sizes: PlainTextSizes) -> None:
        super().__init__()
        self.fusion_layer = sizes.fusion_layer
        self.embedding = PlainEmbedding(sizes)
        self.layers = nn.ModuleList(
            PlainTextLayer(sizes, fusion=index >= sizes.fusion_layer) for index in range(sizes.depth)
        )
        self.masked_lm_head = PlainWordHead(sizes)

    def text(self, input_ids: Int64[Tensor, "B L"], valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Through the text layers."""
        x, bias = self.embedding(input_ids), _bias(valid)
        for layer in self.layers[: self.fusion_layer]:
            x = layer(x, bias, None)
        out: Tensor = x
        return out

    def fusion(
        self, x: Float[Tensor, "P L D"], valid: Bool[Tensor, "P L"], vision: Float[Tensor, "P Nv E"]
    ) -> Float[Tensor, "P L D"]:
        """Through the fusion layers."""
        bias = _bias(valid)
        for layer in self.layers[self.fusion_layer :]:
            x = layer(x, bias, vision)
        return x


class PlainStage2(nn.Module):
    """Both encoders, two projections, a matching head, a temperature.

    Args:
        vision_encoder: a plain one, or ours, which leaves the text side alone to be compared.
        text: sizes of the text encoder.
        pooled_dim: width of the vision encoder's pooled vector.
        contrastive_dim: width of the space that both projections map into.
    """

    def __init__(
        self,
        vision_encoder: PlainEncoder | InternVideo2,
        text: PlainTextSizes,
        *,
        pooled_dim: int,
        contrastive_dim: int,
    ) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.text_encoder = PlainTextEncoder(text)
        self.vision_proj = nn.Linear(pooled_dim, contrastive_dim)
        self.text_proj = nn.Linear(text.embed_dim, contrastive_dim)
        self.matching_head = nn.Linear(text.embed_dim, 2)
        self.temperature = nn.Parameter(torch.full((1,), 0.07))

    def forward(self, step: PlainStep) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of contrast, matching and masked words."""
        tokens, pooled = self._see(step.video, step.masked)
        text = self.text_encoder.text(step.input_ids, step.valid)
        visual, textual = normalize(self.vision_proj(pooled), dim=-1), normalize(self.text_proj(text[:, 0]), dim=-1)
        own = torch.arange(len(visual), device=visual.device)
        similarity = visual @ textual.T / self.temperature
        contrast = (cross_entropy(similarity, own) + cross_entropy(similarity.T, own)) / 2
        wrong = hard_negatives(visual, textual, self.temperature, None, step.noise)
        text_rows, vision_rows = torch.cat([own, own, wrong.text]), torch.cat([own, wrong.vision, own])
        pairs = self.text_encoder.fusion(text[text_rows], step.valid[text_rows], tokens[vision_rows])
        match = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
        matching = cross_entropy(self.matching_head(pairs[:, 0]), match)
        corrupted = self.text_encoder.text(step.corrupted, step.valid)
        fused = self.text_encoder.fusion(corrupted, step.valid, tokens)
        logits = self.text_encoder.masked_lm_head(fused, self.text_encoder.embedding.word.weight)
        words = cross_entropy(logits.flatten(0, 1), step.labels.flatten(), ignore_index=-100)
        return contrast, matching, words

    def _see(self, video: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.vision_encoder, PlainEncoder):
            hidden = torch.cat((torch.zeros_like(masked[:, :1]), masked), dim=1)
            last = len(self.vision_encoder.blocks) - 1
            streams, pooled = self.vision_encoder(video, hidden, [last])
            return streams[0], pooled
        encoded = self.vision_encoder(video, masked)
        return encoded.tokens, encoded.pooled


def _bias(valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B 1 1 L"]:
    return (1.0 - valid.float())[:, None, None] * PADDING_SCORE

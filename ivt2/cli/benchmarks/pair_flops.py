"""Work of a step of stage 2, counted on tensors without memory; L tokens of a caption, S of a clip, W hidden words."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ivt2.cli.benchmarks.flops import TRAINING, forward_flops, pixels
from ivt2.models.bert import Bert
from ivt2.models.bert_layers import Layout
from ivt2.models.stage2 import Stage2Model
from ivt2.ops.masking import num_visible

NUM_LOOKING = 4
"""Captions that look at a clip: the right one, a wrong one, a corrupted one, and the right one of another clip."""


class PairFlops(NamedTuple):
    """Floating-point operations for a clip with its caption, forwards and backwards."""

    vision: int
    text: int

    @property
    def total(self) -> int:
        """Of a whole step of training."""
        return self.vision + self.text


def pair_flops(model: Stage2Model, *, mask_ratio: float, length: int, num_hidden: int) -> PairFlops:
    """Operations of a training step with contrast, matching and masked words, for one clip and its caption.

    What is compared over the batch is left out, and so is what a device recomputes or copies.

    Args:
        model: whose patches are hidden anywhere in the clip.
        mask_ratio: share of hidden patches in [0, 1).
        length: tokens of the caption.
        num_hidden: hidden words, at least one.
    """
    encoder = model.vision_encoder
    visible = num_visible(encoder.num_patches(encoder.num_frames), mask_ratio)
    shown = torch.empty(1, visible, dtype=torch.int64, device="meta")
    vision = forward_flops(encoder, pixels(encoder.num_frames, encoder.image_size), visible=shown)
    words = torch.empty(2, length, dtype=torch.int64, device="meta")
    seen = torch.empty(1, 1 + visible, model.text_encoder.encoder_width, device="meta")
    text = forward_flops(_TextSide(model.text_encoder), words, seen, num_hidden)
    return PairFlops(TRAINING * vision, TRAINING * text)


class _TextSide(nn.Module):
    """The text encoder's part of a step."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self.bert = bert

    def forward(
        self, words: Int64[Tensor, "2 L"], vision_tokens: Float[Tensor, "1 S E"], num_hidden: int
    ) -> Float[Tensor, "W vocabulary"]:
        """Both captions through the text layers, four through the others: of the last one no more than is asked for."""
        bert = self.bert
        length = words.shape[1]
        layout = Layout(NUM_LOOKING, length)
        tokens = bert.encode_text(words)[:1].expand(NUM_LOOKING, -1, -1).flatten(0, 1)
        other = torch.zeros(1, dtype=torch.int64, device=words.device)
        layers = [(layer, seen._replace(rows=other)) for layer, seen in bert.fusion(bert.project(vision_tokens))]
        for layer, seen in layers[:-1]:
            tokens = layer(tokens, layout, seen)
        layer, seen = layers[-1]
        places = torch.zeros(NUM_LOOKING - 1 + num_hidden, dtype=torch.int64, device=words.device)
        asked: Tensor = layer(tokens, layout, seen, places, Layout(NUM_LOOKING, num_hidden, places))
        return bert.predict_tokens(asked[:num_hidden])

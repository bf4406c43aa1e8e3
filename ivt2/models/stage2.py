"""Stage 2: a video encoder and a text encoder with fusion layers, aligned by contrast and by matching.

Letters are those of :mod:`ivt2.batch`; E is the width of the shared space, P counts scored pairs of caption and clip, V
visual tokens with the CLS token, S words to predict.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ivt2.models.bert import Bert
from ivt2.models.internvideo2 import Encoded, InternVideo2

VideoInput = Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"]

TEMPERATURE_RANGE = (0.001, 0.5)
"""Bounds of the learned temperature. Source: reference multi_modality, stage-2 models (spec 0.7)."""


class EncodedText(NamedTuple):
    """Text after the layers below the fusion."""

    tokens: Float[Tensor, "M L D"]
    valid: Bool[Tensor, "M L"]

    @property
    def pooled(self) -> Float[Tensor, "M D"]:
        """The start token after the last text layer: BERT's pooler is not used."""
        return self.tokens[:, 0]


class Stage2Model(nn.Module):
    """InternVideo2 stage 2, visual: what the paper aligns by VTC, VTM and MLM.

    Args:
        vision_encoder: the video encoder; its pooled feature is projected for contrast, its tokens feed the fusion.
        text_encoder: BERT with fusion layers; its ``encoder_width`` must equal the width of the vision encoder.
        contrastive_dim: width E of the space that both projections map into.
        temperature: initial divisor of the cosine similarities, learned and kept within ``TEMPERATURE_RANGE``.

    Source: InternVideo2 (arXiv:2403.15377) section 3.2; reference class InternVideo2_Stage2_visual.
    """

    ENTRY_POINTS = (
        "encode_video", "encode_text", "embed_video", "embed_text", "match", "predict_tokens", "read_temperature",
    )  # fmt: skip
    """Methods that read parameters: what a sharded engine has to know, since there is no single ``forward``."""

    def __init__(
        self,
        vision_encoder: InternVideo2,
        text_encoder: Bert,
        *,
        contrastive_dim: int = 512,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.text_encoder = text_encoder
        self.vision_proj = nn.Linear(vision_encoder.pooled_dim, contrastive_dim)
        self.text_proj = nn.Linear(text_encoder.embed_dim, contrastive_dim)
        self.matching_head = nn.Linear(text_encoder.embed_dim, 2)
        # One element rather than none: a sharded parameter needs a dimension to be cut along.
        self.temperature = nn.Parameter(torch.full((1,), temperature))

    def encode_video(self, video: VideoInput, masked: Bool[Tensor, "B N"] | None = None) -> Encoded:
        """Tokens and pooled feature of clips; hidden tokens are left out.

        Args:
            video: pixels, uint8 or already normalised.
            masked: True where a visual token is hidden; the same number in every clip.
        """
        encoded: Encoded = self.vision_encoder(video, masked)
        return encoded

    def encode_text(self, input_ids: Int64[Tensor, "M L"], valid: Bool[Tensor, "M L"]) -> EncodedText:
        """Token states of captions below the fusion layers."""
        return EncodedText(self.text_encoder.encode_text(input_ids, valid), valid)

    def embed_video(self, encoded: Encoded) -> Float[Tensor, "B E"]:
        """Unit-length feature of clips in the shared space."""
        return F.normalize(self.vision_proj(encoded.pooled), dim=-1)

    def embed_text(self, text: EncodedText) -> Float[Tensor, "M E"]:
        """Unit-length feature of captions in the shared space."""
        return F.normalize(self.text_proj(text.pooled), dim=-1)

    def match(self, text: EncodedText, vision_tokens: Float[Tensor, "P V D_v"]) -> Float[Tensor, "P 2"]:
        """Logits of (no match, match) for pairs of captions and clips.

        Args:
            text: the captions of the P pairs.
            vision_tokens: the visual tokens of the clips of the P pairs.
        """
        fused = self.text_encoder.fuse(text.tokens, text.valid, vision_tokens)
        logits: Tensor = self.matching_head(fused[:, 0])
        return logits

    def predict_tokens(
        self,
        input_ids: Int64[Tensor, "B L"],
        valid: Bool[Tensor, "B L"],
        vision_tokens: Float[Tensor, "B V D_v"],
        selected: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "S vocabulary"]:
        """Logits over the vocabulary at the selected words of corrupted captions that look at their clips.

        Args:
            input_ids: the corrupted captions.
            valid: True where a text token is real.
            vision_tokens: visual tokens of the clip of each caption.
            selected: True at the S positions to predict; the vocabulary is too wide to score every position.
        """
        fused = self.text_encoder(input_ids, valid, vision_tokens)
        return self.text_encoder.predict_tokens(fused[selected])

    def read_temperature(self) -> Float[Tensor, "1"]:
        """Temperature for use in a loss: a copy, since a sharded engine frees the parameter between entry points."""
        return self.temperature.clone()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the learned temperature within its range; to be called before each step."""
        self.temperature.clamp_(*TEMPERATURE_RANGE)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone, beside biases and vectors."""
        return {"temperature"} | {f"vision_encoder.{name}" for name in self.vision_encoder.no_weight_decay()}

    def sharding_units(self) -> Iterator[nn.Module]:
        """Blocks that a sharded engine gathers one at a time."""
        yield from self.vision_encoder.blocks
        yield from self.text_encoder.layers

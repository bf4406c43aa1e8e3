"""Stage 2 with sound: a third encoder, whose tokens feed the same fusion layers as the visual ones.

Letters as in :mod:`ivt2.models.stage2`; S counts audio tokens, A is the width of the audio encoder.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ivt2.models.beats import Beats
from ivt2.models.bert import Bert
from ivt2.models.internvideo2 import Encoded, InternVideo2
from ivt2.models.stage2 import EncodedText, Stage2Model, token_projection
from ivt2.nn.aligning import AligningDecoders


class AudioFeatures(NamedTuple):
    """What the audio encoder says about a batch of sounds."""

    tokens: Float[Tensor, "B S F"]
    """Tokens as the fusion takes them."""
    pooled: Float[Tensor, "B A"]
    """Mean of the encoder's own tokens, before any projection."""


class Stage2AudioVisualModel(Stage2Model):
    """InternVideo2 stage 2 with audio: captions of what is heard, seen, or both.

    Contrast of each pair of modalities is between unit-length features; captions look at audio tokens, at visual ones,
    or at the audio tokens followed by the visual ones.

    Args:
        vision_encoder: as in :class:`Stage2Model`.
        text_encoder: BERT with fusion layers; its ``encoder_width`` must be ``fusion_dim``.
        audio_encoder: BEATs without a prediction head.
        contrastive_dim: width E of the space that all projections map into.
        temperature: as in :class:`Stage2Model`.
        fusion_dim: width F that audio and visual tokens are brought to before the fusion.
        clip_decoders: as in :class:`Stage2Model`.
        audio_visual_fusion: have the map of :meth:`embed_audio_visual`.
        audio_matching: have the head of :meth:`match_audio`.
        audio_visual_matching: have the head of :meth:`match_audio_visual`.
        logit_bias: as in :class:`Stage2Model`.

    Raises:
        InputError: if the text encoder fuses tokens of another width.

    Source: InternVideo2 (arXiv:2403.15377) section 3.2; reference class InternVideo2_Stage2_audiovisual, where the
        weights of the losses decide which of the optional parts exist. The released 6B model has the defaults.
    """

    ENTRY_POINTS = (
        *Stage2Model.ENTRY_POINTS,
        "encode_audio", "embed_audio", "embed_audio_visual", "score_audio_pairs", "score_audio_visual_pairs",
        "match_audio", "match_audio_visual",
    )  # fmt: skip

    def __init__(
        self,
        vision_encoder: InternVideo2,
        text_encoder: Bert,
        audio_encoder: Beats,
        *,
        contrastive_dim: int = 768,
        temperature: float = 0.07,
        fusion_dim: int = 768,
        clip_decoders: AligningDecoders | None = None,
        audio_visual_fusion: bool = True,
        audio_matching: bool = False,
        audio_visual_matching: bool = True,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__(
            vision_encoder,
            text_encoder,
            contrastive_dim=contrastive_dim,
            temperature=temperature,
            fusion_dim=fusion_dim,
            clip_decoders=clip_decoders,
            logit_bias=logit_bias,
        )
        self.audio_encoder = audio_encoder
        self.audio_proj = nn.Linear(audio_encoder.embed_dim, contrastive_dim)
        self.audio_token_proj = token_projection(audio_encoder.embed_dim, fusion_dim)
        self.audio_visual_fusion = nn.Linear(2 * contrastive_dim, contrastive_dim) if audio_visual_fusion else None
        self.audio_matching_head = nn.Linear(text_encoder.embed_dim, 2) if audio_matching else None
        self.audio_visual_matching_head = nn.Linear(text_encoder.embed_dim, 2) if audio_visual_matching else None

    def encode_audio(self, fbank: Float[Tensor, "B frames mels"]) -> AudioFeatures:
        """Tokens and pooled feature of sounds.

        Args:
            fbank: normalised log-mel energies, see :mod:`ivt2.ops.filterbank`; ten seconds are 998 frames.
        """
        tokens = self.audio_encoder(fbank).tokens
        return AudioFeatures(self.audio_token_proj(tokens), tokens.mean(dim=1))

    def embed_audio(self, audio: AudioFeatures) -> Float[Tensor, "B E"]:
        """Unit-length feature of sounds in the shared space."""
        return F.normalize(self.audio_proj(audio.pooled), dim=-1)

    def embed_audio_visual(self, audio: AudioFeatures, video: Encoded) -> Float[Tensor, "B E"]:
        """Unit-length feature of clips with their sound; both projections enter before they are normalised.

        Raises:
            RuntimeError: if the model was built with ``audio_visual_fusion=False``.
        """
        if self.audio_visual_fusion is None:
            raise RuntimeError("embed_audio_visual needs a model built with audio_visual_fusion=True")
        both = torch.cat([self.audio_proj(audio.pooled), self.vision_proj(video.pooled)], dim=-1)
        return F.normalize(self.audio_visual_fusion(both), dim=-1)

    def score_audio_pairs(self, fused: Float[Tensor, "P D"]) -> Float[Tensor, "P 2"]:
        """Logits of (no match, match) from the start tokens of captions that have looked at sounds.

        Raises:
            RuntimeError: if the model was built with ``audio_matching=False``.
        """
        if self.audio_matching_head is None:
            raise RuntimeError("score_audio_pairs needs a model built with audio_matching=True")
        logits: Tensor = self.audio_matching_head(fused)
        return logits

    def score_audio_visual_pairs(self, fused: Float[Tensor, "P D"]) -> Float[Tensor, "P 2"]:
        """Logits of (no match, match) from the start tokens of captions that have looked at clips with sound.

        Raises:
            RuntimeError: if the model was built with ``audio_visual_matching=False``.
        """
        if self.audio_visual_matching_head is None:
            raise RuntimeError("score_audio_visual_pairs needs a model built with audio_visual_matching=True")
        logits: Tensor = self.audio_visual_matching_head(fused)
        return logits

    def match_audio(
        self, text: EncodedText, audio_tokens: Float[Tensor, "B S F"], rows: Int64[Tensor, "P"] | None = None
    ) -> Float[Tensor, "P 2"]:
        """Logits of (no match, match) for pairs of captions and sounds; arguments as in :meth:`match`.

        Raises:
            RuntimeError: if the model was built with ``audio_matching=False``.
        """
        return self.score_audio_pairs(self._fuse_start(text, audio_tokens, rows))

    def match_audio_visual(
        self,
        text: EncodedText,
        audio_tokens: Float[Tensor, "B S F"],
        vision_tokens: Float[Tensor, "B V F"],
        rows: Int64[Tensor, "P"] | None = None,
    ) -> Float[Tensor, "P 2"]:
        """Logits of (no match, match) for pairs of captions and clips with sound; arguments as in :meth:`match`.

        Raises:
            RuntimeError: if the model was built with ``audio_visual_matching=False``.
        """
        return self.score_audio_visual_pairs(self._fuse_start(text, join_tokens(audio_tokens, vision_tokens), rows))

    def sharding_units(self) -> Iterator[nn.Module]:
        """Blocks that a sharded engine gathers one at a time."""
        yield from super().sharding_units()
        yield from self.audio_encoder.layers


def join_tokens(
    audio_tokens: Float[Tensor, "P S F"], vision_tokens: Float[Tensor, "P V F"]
) -> Float[Tensor, "P S+V F"]:
    """What captions of a clip with sound look at: audio first."""
    return torch.cat([audio_tokens, vision_tokens], dim=1)

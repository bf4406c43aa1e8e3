"""Stage 2: a video encoder and a text encoder with fusion layers, aligned by contrast and by matching.

Letters are those of :mod:`ivt2.batch`; E is the width of the shared space, F that of the tokens that are fused with
text, P counts scored pairs of caption and clip, V visual tokens with the CLS token, S words to predict.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ivt2.errors import InputError
from ivt2.models.bert import Bert, Context
from ivt2.models.internvideo2 import Encoded, InternVideo2
from ivt2.nn.aligning import Aligned, AligningDecoders

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
        text_encoder: BERT with fusion layers; its ``encoder_width`` is the width F of the tokens that it fuses.
        contrastive_dim: width E of the space that both projections map into.
        temperature: initial divisor of the cosine similarities, learned and kept within ``TEMPERATURE_RANGE``.
        fusion_dim: width F that visual tokens are brought to before the fusion, by a linear map and a LayerNorm; None
            leaves them as the vision encoder gives them.
        clip_decoders: decoders towards a teacher of unmasked features (UTA); released files contain them.
        logit_bias: start of the learned bias of a sigmoid contrast, which SigLIP starts at -10; None leaves it out.

    Raises:
        InputError: if the text encoder fuses tokens of another width.

    Source: InternVideo2 (arXiv:2403.15377) section 3.2; reference classes InternVideo2_Stage2_visual and, for
        ``fusion_dim``, InternVideo2_Stage2_audiovisual without audio.
    """

    ENTRY_POINTS: tuple[str, ...] = (
        "encode_video", "encode_text", "embed_video", "embed_text", "project_tokens", "fuse", "fuse_at", "score_pairs",
        "predict_words", "match", "predict_tokens", "align", "read_temperature", "read_logit_bias",
    )  # fmt: skip
    """Methods that read parameters: what a sharded engine has to know, since there is no single ``forward``."""

    def __init__(
        self,
        vision_encoder: InternVideo2,
        text_encoder: Bert,
        *,
        contrastive_dim: int = 512,
        temperature: float = 0.07,
        fusion_dim: int | None = None,
        clip_decoders: AligningDecoders | None = None,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        fused_width = vision_encoder.embed_dim if fusion_dim is None else fusion_dim
        if text_encoder.encoder_width != fused_width:
            raise InputError(
                f"text_encoder.encoder_width={text_encoder.encoder_width} but visual tokens are {fused_width} wide: "
                "make them equal"
            )
        self.vision_encoder = vision_encoder
        self.text_encoder = text_encoder
        self.vision_proj = nn.Linear(vision_encoder.pooled_dim, contrastive_dim)
        self.text_proj = nn.Linear(text_encoder.embed_dim, contrastive_dim)
        self.matching_head = nn.Linear(text_encoder.embed_dim, 2)
        # One element rather than none: a sharded parameter needs a dimension to be cut along.
        self.temperature = nn.Parameter(torch.full((1,), temperature))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.full((1,), logit_bias))
        self.vision_token_proj = None if fusion_dim is None else token_projection(vision_encoder.embed_dim, fusion_dim)
        self.clip_decoders = clip_decoders

    def encode_video(
        self, video: VideoInput, masked: Bool[Tensor, "B N"] | None = None, taps: Sequence[int] = ()
    ) -> Encoded:
        """Tokens as the fusion takes them, and pooled feature, of clips; hidden tokens are left out.

        Args:
            video: pixels, uint8 or already normalised.
            masked: True where a visual token is hidden; the same number in every clip.
            taps: blocks whose residual stream is returned for :meth:`align`, as in the vision encoder.
        """
        encoded: Encoded = self.vision_encoder(video, masked, taps)
        if self.vision_token_proj is None:
            return encoded
        return encoded._replace(tokens=self.vision_token_proj(encoded.tokens))

    def encode_segments(self, video: VideoInput, num_segments: int) -> Encoded:
        """Encode long clips as ``num_segments`` interleaved ones, and average what comes out.

        Segment s has frames s, s + num_segments, s + 2 num_segments and so on: each one spans the whole clip.

        Args:
            video: clips of ``num_segments`` times as many frames as the vision encoder takes.
            num_segments: number of segments, at least 1.

        Raises:
            InputError: if the frames cannot be shared out evenly.

        Source: reference multi_modality, ``num_test_segments``.
        """
        if num_segments < 1 or video.shape[1] % num_segments:
            raise InputError(
                f"{video.shape[1]} frames do not make {num_segments} segments: sample a multiple of the segments"
            )
        segments = torch.unflatten(video, 1, (-1, num_segments)).transpose(1, 2).flatten(0, 1)
        encoded = self.encode_video(segments)
        tokens, pooled = (
            torch.unflatten(each, 0, (-1, num_segments)).mean(dim=1) for each in (encoded.tokens, encoded.pooled)
        )
        return Encoded(tokens, pooled, tokens.new_empty(0, *tokens.shape))

    def encode_text(self, input_ids: Int64[Tensor, "M L"], valid: Bool[Tensor, "M L"]) -> EncodedText:
        """Token states of captions below the fusion layers."""
        return EncodedText(self.text_encoder.encode_text(input_ids, valid), valid)

    def embed_video(self, encoded: Encoded) -> Float[Tensor, "B E"]:
        """Unit-length feature of clips in the shared space."""
        return F.normalize(self.vision_proj(encoded.pooled), dim=-1)

    def embed_text(self, text: EncodedText) -> Float[Tensor, "M E"]:
        """Unit-length feature of captions in the shared space."""
        return F.normalize(self.text_proj(text.pooled), dim=-1)

    def project_tokens(self, tokens: Float[Tensor, "B V F"]) -> Context:
        """Keys and values of clips for all fusion layers: computed once, whatever number of captions looks at them.

        Args:
            tokens: as :meth:`encode_video` gives them.
        """
        return self.text_encoder.project(tokens)

    def fuse(
        self, text: EncodedText, context: Context, rows: Int64[Tensor, "R"] | None = None
    ) -> Float[Tensor, "P L D"]:
        """Captions after the fusion layers, in which they look at clips; 0 for padding.

        Args:
            text: the captions of the P pairs.
            context: result of :meth:`project_tokens` on B clips.
            rows: clip of each of the last R captions. Those before look at clips 0 to B - 1 in turn, over and over,
                which costs less than to name the same clips here.

        Raises:
            ValueError: if the captions before the last R are no multiple of B.
        """
        return self.text_encoder.fuse(text.tokens, text.valid, context, rows)

    def fuse_at(
        self,
        text: EncodedText,
        context: Context,
        rows: Int64[Tensor, "R"] | None,
        wanted: Bool[Tensor, "P L"],
    ) -> Float[Tensor, "S D"]:
        """What :meth:`fuse` says at the S wanted positions, in their order; the last layer computes no others.

        Args:
            text: as in :meth:`fuse`.
            context: as in :meth:`fuse`.
            rows: as in :meth:`fuse`.
            wanted: True at the start token of captions to be matched, and at words to be predicted.
        """
        return self.text_encoder.fuse_at(text.tokens, text.valid, context, rows, wanted)

    def score_pairs(self, fused: Float[Tensor, "P D"]) -> Float[Tensor, "P 2"]:
        """Logits of (no match, match) from the start tokens of captions that have looked at clips."""
        logits: Tensor = self.matching_head(fused)
        return logits

    def predict_words(self, fused: Float[Tensor, "S D"]) -> Float[Tensor, "S vocabulary"]:
        """Logits over the vocabulary from fused tokens; it is too wide to score every position."""
        return self.text_encoder.predict_tokens(fused)

    def match(
        self, text: EncodedText, vision_tokens: Float[Tensor, "B V F"], rows: Int64[Tensor, "P"] | None = None
    ) -> Float[Tensor, "P 2"]:
        """Logits of (no match, match) for pairs of captions and clips.

        Args:
            text: the captions of the P pairs.
            vision_tokens: the visual tokens of B clips.
            rows: the clip of each pair; None where there is one clip for each pair, in order.
        """
        return self.score_pairs(self._fuse_start(text, vision_tokens, rows))

    def _fuse_start(self, text: EncodedText, tokens: Tensor, rows: Tensor | None) -> Tensor:
        return self.fuse_at(text, self.project_tokens(tokens), rows, start_tokens(text.valid))

    def predict_tokens(
        self,
        input_ids: Int64[Tensor, "B L"],
        valid: Bool[Tensor, "B L"],
        vision_tokens: Float[Tensor, "B V F"],
        selected: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "S vocabulary"]:
        """Logits over the vocabulary at the selected words of corrupted captions that look at their clips.

        Args:
            input_ids: the corrupted captions.
            valid: True where a text token is real.
            vision_tokens: visual tokens of the clip of each caption.
            selected: True at the S positions to predict.
        """
        text = self.encode_text(input_ids, valid)
        return self.predict_words(self.fuse_at(text, self.project_tokens(vision_tokens), None, selected))

    def align(self, encoded: Encoded, masked: Bool[Tensor, "B N"] | None = None, *, image: bool = False) -> Aligned:
        """Features in the teacher's space.

        Args:
            encoded: result of :meth:`encode_video`, with as many taps as there are decoders.
            masked: the mask that :meth:`encode_video` got.
            image: whether the clips have a single frame.

        Raises:
            RuntimeError: if the model was built without ``clip_decoders``.
        """
        if self.clip_decoders is None:
            raise RuntimeError("align needs a Stage2Model built with clip_decoders")
        aligned: Aligned = self.clip_decoders(encoded.intermediates, encoded.pooled, image=image, masked=masked)
        return aligned

    def read_temperature(self) -> Float[Tensor, "1"]:
        """Temperature for use in a loss: a copy, since a sharded engine frees the parameter between entry points."""
        return self.temperature.clone()

    def read_logit_bias(self) -> Float[Tensor, "1"] | None:
        """Bias for use in a sigmoid contrast, likewise; None where the model has none."""
        return None if self.logit_bias is None else self.logit_bias.clone()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the learned temperature within its range; to be called before each step."""
        self.temperature.clamp_(*TEMPERATURE_RANGE)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone, beside biases and vectors."""
        names = {"temperature"} | {f"vision_encoder.{name}" for name in self.vision_encoder.no_weight_decay()}
        if self.clip_decoders is not None:
            names |= {f"clip_decoders.{name}" for name in self.clip_decoders.no_weight_decay()}
        return names

    def sharding_units(self) -> Iterator[nn.Module]:
        """Blocks that a sharded engine gathers one at a time."""
        yield from self.vision_encoder.blocks
        yield from self.text_encoder.layers


def start_tokens(valid: Bool[Tensor, "P L"]) -> Bool[Tensor, "P L"]:
    """True at the first token of each caption, which is what the matching heads read."""
    wanted = torch.zeros_like(valid)
    wanted[:, 0] = True
    return wanted


def token_projection(width: int, fusion_dim: int) -> nn.Sequential:
    """What brings an encoder's tokens to the width of the fusion: a linear map and a LayerNorm."""
    return nn.Sequential(nn.Linear(width, fusion_dim), nn.LayerNorm(fusion_dim, eps=1e-5))

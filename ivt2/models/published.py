"""The published networks at their published sizes, with random weights.

All work under ``torch.device("meta")``, which allocates nothing. What belongs to training alone (stochastic depth,
recomputed activations) is left at its default: the experiments state it.
Source of the sizes: model definitions and configurations of the reference, single_modality and multi_modality.
"""

from dataclasses import dataclass
from typing import Literal

from ivt2.models.beats import Beats
from ivt2.models.bert import Bert
from ivt2.models.clip import ClipModel
from ivt2.models.heads import ClassificationHead, ConcatHead, MergeNorm, VideoClassifier
from ivt2.models.internvideo2 import InternVideo2, taps_from_end
from ivt2.models.llama_text import LlamaText
from ivt2.models.mobileclip import MobileClipText
from ivt2.models.stage1 import Stage1Student
from ivt2.models.stage2 import Stage2Model
from ivt2.models.stage2_audio import Stage2AudioVisualModel
from ivt2.models.videomae import VideoMAE
from ivt2.nn.aligning import AligningDecoders, DecoderKind

Size = Literal["s14", "b14", "l14", "1b", "6b"]
LargeSize = Literal["1b", "6b"]
SmallSize = Literal["s14", "b14", "l14"]
Position = Literal["joint", "separable"]

PATCH_SIZE = 14
CLIP_LAYERS = 6
"""Last blocks of a student that are aligned with a teacher of tokens and of a pooled vector."""
MAE_LAYERS = 4
"""Last blocks that are aligned with VideoMAE."""


@dataclass(frozen=True)
class EncoderSize:
    """Widths of a video encoder."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0


SIZES: dict[Size, EncoderSize] = {
    "s14": EncoderSize(embed_dim=384, depth=12, num_heads=6),
    "b14": EncoderSize(embed_dim=768, depth=12, num_heads=12),
    "l14": EncoderSize(embed_dim=1024, depth=24, num_heads=16),
    "1b": EncoderSize(embed_dim=1408, depth=40, num_heads=16, mlp_ratio=48 / 11),
    "6b": EncoderSize(embed_dim=3200, depth=48, num_heads=25),
}


def video_encoder(
    size: Size,
    *,
    num_frames: int,
    image_size: int = 224,
    separate_image_position: bool = False,
    position: Position = "joint",
    layer_scale_fp32: bool = True,
) -> InternVideo2:
    """The video encoder alone; arguments as in :class:`InternVideo2`."""
    widths = SIZES[size]
    return InternVideo2(
        image_size=image_size,
        patch_size=PATCH_SIZE,
        num_frames=num_frames,
        embed_dim=widths.embed_dim,
        depth=widths.depth,
        num_heads=widths.num_heads,
        mlp_ratio=widths.mlp_ratio,
        separate_image_position=separate_image_position,
        position=position,
        layer_scale_fp32=layer_scale_fp32,
    )


def video_classifier(
    size: Size,
    *,
    num_classes: int,
    num_frames: int,
    image_size: int = 224,
    position: Position = "joint",
    extra_mlp: bool = False,
) -> VideoClassifier:
    """The video encoder with a classification head; arguments as in :class:`ClassificationHead`."""
    encoder = video_encoder(size, num_frames=num_frames, image_size=image_size, position=position)
    head = ClassificationHead(pooled_dim=encoder.pooled_dim, num_classes=num_classes, extra_mlp=extra_mlp)
    return VideoClassifier(encoder, head)


def concat_classifier(
    size: Size,
    *,
    num_classes: int,
    num_frames: int,
    image_size: int = 224,
    per_frame: bool,
    with_pooled: bool,
    merge_norm: MergeNorm,
) -> VideoClassifier:
    """The video encoder with a head over several features side by side; arguments as in :class:`ConcatHead`."""
    encoder = video_encoder(size, num_frames=num_frames, image_size=image_size)
    head = ConcatHead(
        embed_dim=encoder.embed_dim,
        pooled_dim=encoder.pooled_dim,
        num_frames=encoder.grid_frames,
        num_classes=num_classes,
        per_frame=per_frame,
        with_pooled=with_pooled,
        merge_norm=merge_norm,
    )
    return VideoClassifier(encoder, head)


def stage1_student(size: LargeSize, *, num_frames: int = 8, image_size: int = 224) -> Stage1Student:
    """The student of masked pre-training, with linear decoders towards InternVL and perceptrons towards VideoMAEv2-g.

    Args:
        size: Size of the student.
        num_frames: Frames of a clip; VideoMAE sees twice as many.
        image_size: Side of a frame in pixels.
    """
    encoder = video_encoder(size, num_frames=num_frames, image_size=image_size)
    mae_decoders = AligningDecoders(
        embed_dim=encoder.embed_dim,
        pooled_dim=encoder.pooled_dim,
        num_layers=MAE_LAYERS,
        teacher_dim=1408,
        final_dim=0,
        num_frames=encoder.grid_frames,
        grid_size=encoder.grid_size,
        decoder="mlp",
        cls_token=False,
    )
    return Stage1Student(
        encoder,
        _clip_decoders(encoder),
        mae_decoders,
        clip_taps=taps_from_end(encoder.depth, CLIP_LAYERS),
        mae_taps=taps_from_end(encoder.depth, MAE_LAYERS),
    )


def distilled_student(size: SmallSize, *, num_frames: int = 8, image_size: int = 224) -> Stage1Student:
    """The student of a small model's distillation from the 1B model of stage 2, with perceptrons as decoders.

    Args:
        size: Size of the student.
        num_frames: Frames of a clip.
        image_size: Side of a frame in pixels.
    """
    encoder = video_encoder(size, num_frames=num_frames, image_size=image_size)
    decoders = _clip_decoders(encoder, teacher_dim=1408, decoder="mlp")
    return Stage1Student(encoder, decoders, clip_taps=taps_from_end(encoder.depth, CLIP_LAYERS))


def _clip_decoders(
    encoder: InternVideo2, *, teacher_dim: int = 3200, decoder: DecoderKind = "linear"
) -> AligningDecoders:
    """Towards a teacher as wide as InternVL unless said otherwise; tables of positions as the encoder has them."""
    return AligningDecoders(
        embed_dim=encoder.embed_dim,
        pooled_dim=encoder.pooled_dim,
        num_layers=CLIP_LAYERS,
        teacher_dim=teacher_dim,
        final_dim=768,
        num_frames=encoder.grid_frames,
        grid_size=encoder.grid_size,
        decoder=decoder,
        separate_image_position=encoder.separate_image_position,
    )


def internvl_c(*, image_size: int = 224) -> InternVideo2:
    """InternVL-C's vision encoder, the 6B network of images that pre-training learns from."""
    return video_encoder("6b", num_frames=1, image_size=image_size)


def videomae_v2_g(
    *, num_frames: int = 16, image_size: int = 224, attention: Literal["fixed", "literal"] = "fixed"
) -> VideoMAE:
    """VideoMAEv2-g, the second teacher of pre-training; arguments as in :class:`VideoMAE`."""
    return VideoMAE(
        image_size=image_size,
        patch_size=PATCH_SIZE,
        num_frames=num_frames,
        embed_dim=1408,
        depth=40,
        num_heads=16,
        mlp_ratio=48 / 11,
        attention=attention,
    )


def beats() -> Beats:
    """BEATs as the audio encoder of stage 2."""
    return Beats()


def bert_large(
    *, fusion_layer: int = 19, encoder_width: int = 1408, pooler: bool = False, masked_lm: bool = True
) -> Bert:
    """BERT-large, uncased: 19 layers that read text and 5 that also look at tokens of width ``encoder_width``.

    Args:
        fusion_layer: First layer with cross-attention; 24 is BERT as published.
        encoder_width: Width of the tokens that the fusion layers look at.
        pooler: Add BERT's pooler.
        masked_lm: Add the head of masked language modelling.
    """
    return Bert(
        vocab_size=30522,
        embed_dim=1024,
        depth=24,
        num_heads=16,
        mlp_dim=4096,
        max_positions=512,
        fusion_layer=fusion_layer,
        encoder_width=encoder_width,
        pooler=pooler,
        masked_lm=masked_lm,
    )


def stage2_visual(
    size: LargeSize = "1b", *, num_frames: int = 4, image_size: int = 224, masked_lm: bool = True
) -> Stage2Model:
    """The visual stage-2 model, of which the 1B was released.

    Args:
        size: Size of the video encoder.
        num_frames: Frames of a clip.
        image_size: Side of a frame in pixels.
        masked_lm: Whether the text encoder has the head of masked language modelling.
    """
    encoder = video_encoder(size, num_frames=num_frames, image_size=image_size, separate_image_position=True)
    text = bert_large(encoder_width=encoder.embed_dim, masked_lm=masked_lm)
    return Stage2Model(encoder, text, contrastive_dim=512, clip_decoders=_clip_decoders(encoder))


def stage2_audio_visual(
    size: LargeSize = "6b",
    *,
    num_frames: int = 4,
    image_size: int = 224,
    audio: bool = True,
    masked_lm: bool = True,
) -> Stage2Model:
    """The stage-2 model that brings tokens to a common width before the fusion, of which the 6B was released.

    Args:
        size: Size of the video encoder.
        num_frames: Frames of a clip.
        image_size: Side of a frame in pixels.
        audio: Whether there is an audio encoder, and what goes with it: the result is a
            :class:`Stage2AudioVisualModel` then. Fine-tuning on retrieval left it out.
        masked_lm: Whether the text encoder has the head of masked language modelling.
    """
    encoder = video_encoder(size, num_frames=num_frames, image_size=image_size)
    text, decoders = bert_large(encoder_width=768, masked_lm=masked_lm), _clip_decoders(encoder)
    if audio:
        return Stage2AudioVisualModel(encoder, text, beats(), clip_decoders=decoders)
    return Stage2Model(encoder, text, contrastive_dim=768, fusion_dim=768, clip_decoders=decoders)


def mobileclip_b() -> MobileClipText:
    """MobileCLIP-B's text tower."""
    return MobileClipText(vocab_size=49408, context_length=77, embed_dim=512, depth=12, num_heads=8, projection_dim=512)


def llama_7b(*, lora: bool = True) -> LlamaText:
    """InternVL-C's text tower, a LLaMA 7B with Chinese tokens; needs the extra ``ivt2[chat]``.

    Args:
        lora: Whether queries and values carry adapters of rank 16.
    """
    return LlamaText(
        vocab_size=49954,
        embed_dim=4096,
        depth=32,
        num_heads=32,
        mlp_dim=11008,
        projection_dim=768,
        lora_rank=16 if lora else None,
    )


def clip_large(size: LargeSize, *, num_frames: int = 8, image_size: int = 224, lora: bool = True) -> ClipModel:
    """InternVideo2-CLIP with LLaMA; arguments as in :func:`video_encoder` and :func:`llama_7b`."""
    encoder = video_encoder(size, num_frames=num_frames, image_size=image_size, layer_scale_fp32=False)
    return ClipModel(encoder, llama_7b(lora=lora))


def clip_small(size: SmallSize, *, num_frames: int = 8, image_size: int = 224) -> ClipModel:
    """InternVideo2-CLIP with MobileCLIP's text tower; arguments as in :func:`video_encoder`."""
    encoder = video_encoder(size, num_frames=num_frames, image_size=image_size, layer_scale_fp32=False)
    return ClipModel(encoder, mobileclip_b(), vision_align=512)

"""A network of every family, small enough to fill with numbers, and the map of its file."""

import torch

from ivt2.checkpoint.keymaps import audio, clip, stage1, stage2, teachers, text
from ivt2.models.beats import Beats
from ivt2.models.bert import Bert
from ivt2.models.clip import ClipModel
from ivt2.models.heads import ClassificationHead, ConcatHead, VideoClassifier
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.llama_text import LlamaText
from ivt2.models.mobileclip import MobileClipText
from ivt2.models.stage1 import Stage1Student
from ivt2.models.stage2 import Stage2Model
from ivt2.models.stage2_audio import Stage2AudioVisualModel
from ivt2.models.videomae import VideoMAE
from ivt2.nn.aligning import AligningDecoders


def encoder(num_frames=2, **options):
    return InternVideo2(
        image_size=28,
        patch_size=14,
        num_frames=num_frames,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=2.0,
        pool_num_heads=2,
        pooled_dim=6,
        **options,
    )


def decoders(*, final_dim=5, **options):
    return AligningDecoders(
        embed_dim=16,
        pooled_dim=6,
        num_layers=2,
        teacher_dim=7,
        final_dim=final_dim,
        num_frames=2,
        grid_size=2,
        **options,
    )


def student(**options):
    return Stage1Student(
        encoder(**options),
        decoders(**options),
        decoders(decoder="mlp", final_dim=0, cls_token=False, **options),
        clip_taps=(0, 1),
        mae_taps=(0, 1),
    )


def distilled():
    return Stage1Student(encoder(), decoders(decoder="mlp"), clip_taps=(0, 1))


def classifier(**options):
    return VideoClassifier(encoder(), ClassificationHead(pooled_dim=6, num_classes=3, **options))


def concatenating(merge_norm, *, per_frame, with_pooled):
    return VideoClassifier(
        encoder(),
        ConcatHead(
            embed_dim=16,
            pooled_dim=6,
            num_frames=2,
            num_classes=3,
            per_frame=per_frame,
            with_pooled=with_pooled,
            merge_norm=merge_norm,
        ),
    )


def bert(encoder_width=16, **options):
    return Bert(
        vocab_size=11,
        embed_dim=8,
        depth=3,
        num_heads=2,
        mlp_dim=12,
        max_positions=9,
        fusion_layer=2,
        encoder_width=encoder_width,
        **options,
    )


def beats(**options):
    sizes = {
        "patch_dim": 6,
        "embed_dim": 8,
        "depth": 3,
        "num_heads": 2,
        "mlp_dim": 12,
        "position_kernel": 4,
        "position_groups": 2,
        "num_buckets": 8,
        "max_distance": 16,
    }
    return Beats(**(sizes | options))


def visual(*, masked_lm=True, images=True):
    return Stage2Model(
        encoder(separate_image_position=images),
        bert(masked_lm=masked_lm),
        contrastive_dim=4,
        clip_decoders=decoders(separate_image_position=images),
    )


def audio_visual(*, masked_lm=True):
    return Stage2AudioVisualModel(
        encoder(),
        bert(10, masked_lm=masked_lm),
        beats(),
        contrastive_dim=4,
        fusion_dim=10,
        clip_decoders=decoders(),
        audio_matching=True,
    )


def silent(*, masked_lm=True):
    return Stage2Model(
        encoder(), bert(10, masked_lm=masked_lm), contrastive_dim=4, fusion_dim=10, clip_decoders=decoders()
    )


def llama(*, lora=True):
    return LlamaText(
        vocab_size=11,
        embed_dim=8,
        depth=2,
        num_heads=2,
        mlp_dim=12,
        projection_dim=6,
        lora_rank=2 if lora else None,
    )


def mobileclip():
    return MobileClipText(vocab_size=11, context_length=5, embed_dim=8, depth=2, num_heads=2, projection_dim=4)


def clip_large(*, lora=True):
    return ClipModel(encoder(4), llama(lora=lora))


def clip_small():
    return ClipModel(encoder(), mobileclip(), vision_align=4)


def videomae(layer_scale_init=None):
    return VideoMAE(
        image_size=28,
        patch_size=14,
        num_frames=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=2.0,
        layer_scale_init=layer_scale_init,
    )


FAMILIES = {
    "pretrained": (stage1.PRETRAIN, student),
    "pretrained-separable": (stage1.PRETRAIN, lambda: student(position="separable")),
    "distilled": (stage1.DISTILLED, distilled),
    "finetuned": (stage1.FINETUNED, classifier),
    "attentive-probe": (stage1.ATTENTIVE_PROBE, lambda: classifier(extra_mlp=True)),
    "concatenating-layer": (
        stage1.CONCATENATING_PROBE,
        lambda: concatenating("layer", per_frame=True, with_pooled=True),
    ),
    "concatenating-batch": (
        stage1.CONCATENATING_PROBE,
        lambda: concatenating("batch", per_frame=False, with_pooled=True),
    ),
    "internvl": (teachers.INTERNVL, lambda: encoder(1)),
    "videomae": (teachers.VIDEOMAE, videomae),
    "videomae-scaled": (teachers.VIDEOMAE, lambda: videomae(0.1)),
    "teacher-stage1": (teachers.INTERNVIDEO2_STAGE1, encoder),
    "teacher-stage2": (teachers.INTERNVIDEO2_STAGE2, encoder),
    "visual": (stage2.VISUAL, visual),
    "visual-retrieval": (stage2.VISUAL_RETRIEVAL, lambda: visual(masked_lm=False)),
    "audio-visual": (stage2.AUDIO_VISUAL, audio_visual),
    "audio-visual-silent": (stage2.AUDIO_VISUAL, silent),
    "audio-visual-retrieval": (stage2.AUDIO_VISUAL_RETRIEVAL, lambda: audio_visual(masked_lm=False)),
    "beats": (audio.BEATS, beats),
    "beats-plain": (audio.BEATS, lambda: beats(relative_position="plain", norm="pre", activation="glu")),
    "beats-classifier": (audio.BEATS, lambda: beats(relative_position="none", patch_bias=True, num_classes=3)),
    "bert": (text.BERT, bert),
    "mobileclip": (text.MOBILECLIP, mobileclip),
    "llama-lora": (text.LLAMA, llama),
    "llama-plain": (text.LLAMA, lambda: llama(lora=False)),
    "clip-large": (clip.LARGE, clip_large),
    "clip-large-plain": (clip.LARGE, lambda: clip_large(lora=False)),
    "clip-small": (clip.SMALL, clip_small),
}


def filled(build):
    """A state of the network that ``build`` makes, with numbers that differ everywhere."""
    with torch.device("meta"):
        state = build().state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else torch.tensor(3)
        for name, value in state.items()
    }

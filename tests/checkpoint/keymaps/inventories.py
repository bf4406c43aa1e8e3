"""What the reference's networks hold, as formulas: every key with its shape.

Source: state dicts of the networks of single_modality and multi_modality at their published sizes, instantiated on the
meta device. D is the width, M the hidden width of the perceptrons, T frames, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

Shapes = dict[str, tuple[int, ...]]

SIZES = {  # D, depth, M
    "S14": (384, 12, 1536),
    "B14": (768, 12, 3072),
    "L14": (1024, 24, 4096),
    "1B": (1408, 40, 6144),
    "6B": (3200, 48, 12800),
}


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + key: shape for key, shape in shapes.items()}


def linear(key: str, out_dim: int, in_dim: int) -> Shapes:
    return {f"{key}.weight": (out_dim, in_dim), f"{key}.bias": (out_dim,)}


def norm(key: str, dim: int) -> Shapes:
    return {f"{key}.weight": (dim,), f"{key}.bias": (dim,)}


# The video encoder and what goes with it.


def block(d: int, m: int) -> Shapes:
    return {
        "norm1.weight": (d,),
        "attn.qkv.weight": (3 * d, d),
        **linear("attn.proj", d, d),
        "attn.q_norm.weight": (d,),
        "attn.k_norm.weight": (d,),
        "ls1.gamma": (d,),
        "norm2.weight": (d,),
        **linear("mlp.fc1", m, d),
        **linear("mlp.fc2", d, m),
        "ls2.gamma": (d,),
    }


def pooling(d: int) -> Shapes:
    shapes: Shapes = {"cross_attn.proj.weight": (768, d), "cross_attn.proj.bias": (768,)}
    for letter in "qkv":
        shapes |= norm(f"norm1_{letter}", d)
        shapes |= {f"cross_attn.{letter}_bias": (d,), f"cross_attn.{letter}.weight": (d, d)}
    return shapes


def encoder(size: str, frames: int, *, separable: bool = False, images: bool = False) -> Shapes:
    d, depth, m = SIZES[size]
    joint = {"pos_embed": (1, 1 + 256 * frames, d)}
    split = {"pos_embed_spatial": (1, 256, d), "pos_embed_temporal": (1, frames, d), "pos_embed_cls": (1, 1, d)}
    shapes: Shapes = {
        "cls_token": (1, 1, d),
        **(split if separable else joint),
        **({"img_pos_embed": (1, 257, d)} if images else {}),
        "patch_embed.proj.weight": (d, 3, 1, 14, 14),
        "patch_embed.proj.bias": (d,),
        **under("clip_projector.", pooling(d)),
    }
    for index in range(depth):
        shapes |= under(f"blocks.{index}.", block(d, m))
    return shapes


def linear_decoder(in_dim: int, out_dim: int) -> Shapes:
    return linear("head", out_dim, in_dim) | norm("norm", out_dim)


def mlp_decoder(in_dim: int, out_dim: int) -> Shapes:
    return linear("head.0", in_dim, in_dim) | linear("head.2", out_dim, in_dim) | norm("norm", out_dim)


def aligning(size: str, frames: int, decoder: Callable[[int, int], Shapes], out_dim: int, *, images: bool) -> Shapes:
    d = SIZES[size][0]
    shapes = {"clip_pos_embed": (1, 1 + 256 * frames, d), **under("final_clip_decoder.", decoder(768, 768))}
    for index in range(6):
        shapes |= under(f"clip_decoder.{index}.", decoder(d, out_dim))
    return shapes | ({"clip_img_pos_embed": (1, 257, d)} if images else {})


def pretrained(size: str) -> Shapes:
    d = SIZES[size][0]
    shapes = encoder(size, 8) | aligning(size, 8, linear_decoder, 3200, images=False)
    for index in range(4):
        shapes |= under(f"mae_decoder.{index}.", mlp_decoder(d, 1408))
    return shapes | {"mae_pos_embed": (1, 2048, d)}


def distilled(size: str) -> Shapes:
    return encoder(size, 8) | aligning(size, 8, mlp_decoder, 1408, images=False)


def classifier(size: str, frames: int, classes: int, *, separable: bool = False, width: int = 768) -> Shapes:
    return encoder(size, frames, separable=separable) | norm("fc_norm", 768) | linear("head", classes, width)


def attentive_probe(size: str) -> Shapes:
    extra = norm("extra_mlp.0", 768) | linear("extra_mlp.1.fc1", 3072, 768) | linear("extra_mlp.1.fc2", 768, 3072)
    return classifier(size, 16, 174) | extra


def concatenating_probe(method: str, kind: str) -> Shapes:
    if method == "proj":
        return classifier("1B", 16, 174)
    frames, pooled = 16, 768 * method.endswith("_proj")
    dim = 768 if "avgN" in method else 1408
    width = (dim * (frames + 1) if "avgN" in method else 2 * dim) + pooled
    shapes = classifier("1B", frames, 174, width=width)
    if "avgN" in method:
        shapes |= linear("down.0", 768, 1408)
    if kind != "kaiming_BN":
        shapes |= norm("down_norm", dim)
    if kind != "LN":
        shapes |= {f"down_norm.running_{what}": (dim,) for what in ("mean", "var")}
        shapes |= {"down_norm.num_batches_tracked": ()}
    return shapes


# Teachers.


def internvl() -> Shapes:
    return encoder("6B", 1) | {"pos_embed": (1, 257, 3200)}


def videomae() -> Shapes:
    d, m = 1408, 6144
    shapes = {"patch_embed.proj.weight": (d, 3, 2, 14, 14), "patch_embed.proj.bias": (d,), **norm("norm", d)}
    for index in range(40):
        shapes |= under(
            f"blocks.{index}.",
            norm("norm1", d)
            | {"attn.q_bias": (d,), "attn.v_bias": (d,), "attn.qkv.weight": (3 * d, d)}
            | linear("attn.proj", d, d)
            | norm("norm2", d)
            | linear("mlp.fc1", m, d)
            | linear("mlp.fc2", d, m),
        )
    return shapes


# Text and audio.


def bert_attention(context: int) -> Shapes:
    return (
        linear("self.query", 1024, 1024)
        | linear("self.key", 1024, context)
        | linear("self.value", 1024, context)
        | linear("output.dense", 1024, 1024)
        | norm("output.LayerNorm", 1024)
    )


def bert_body(context: int, fusion_layer: int = 19) -> Shapes:
    shapes: Shapes = {
        "embeddings.position_ids": (1, 512),
        "embeddings.word_embeddings.weight": (30522, 1024),
        "embeddings.position_embeddings.weight": (512, 1024),
        "embeddings.token_type_embeddings.weight": (2, 1024),
        **norm("embeddings.LayerNorm", 1024),
    }
    for index in range(24):
        layer = under("attention.", bert_attention(1024))
        layer |= linear("intermediate.dense", 4096, 1024) | linear("output.dense", 1024, 4096)
        layer |= norm("output.LayerNorm", 1024)
        if index >= fusion_layer:
            layer |= under("crossattention.", bert_attention(context))
        shapes |= under(f"encoder.layer.{index}.", layer)
    return shapes


def bert_head() -> Shapes:
    return {
        "cls.predictions.bias": (30522,),
        **linear("cls.predictions.transform.dense", 1024, 1024),
        **norm("cls.predictions.transform.LayerNorm", 1024),
        **linear("cls.predictions.decoder", 30522, 1024),
    }


def bert(context: int, *, wrapped: bool) -> Shapes:
    return under("bert.", bert_body(context)) | bert_head() if wrapped else bert_body(context)


def mobileclip() -> Shapes:
    shapes: Shapes = {
        "projection_layer": (512, 512),
        "embedding_layer.weight": (49408, 512),
        "positional_embedding.pos_embed.pos_embed": (1, 1, 77, 512),
        **norm("final_layer_norm", 512),
    }
    for index in range(12):
        shapes |= under(
            f"transformer.{index}.",
            norm("pre_norm_mha.0", 512)
            | linear("pre_norm_mha.1.qkv_proj", 1536, 512)
            | linear("pre_norm_mha.1.out_proj", 512, 512)
            | norm("pre_norm_ffn.0", 512)
            | linear("pre_norm_ffn.1", 2048, 512)
            | linear("pre_norm_ffn.4", 512, 2048),
        )
    return shapes


def llama(*, lora: bool) -> Shapes:
    d, m = 4096, 11008
    shapes: Shapes = {
        "text_projection": (d, 768),
        "transformer.embed_tokens.weight": (49954, d),
        "transformer.norm.weight": (d,),
    }
    for index in range(32):
        layer: Shapes = {f"self_attn.{letter}_proj.weight": (d, d) for letter in "qkvo"}
        for letter in "qv" if lora else "":
            del layer[f"self_attn.{letter}_proj.weight"]
            layer |= under(
                f"self_attn.{letter}_proj.",
                {
                    "base_layer.weight": (d, d),
                    "lora_A.default.weight": (16, d),
                    "lora_B.default.weight": (d, 16),
                },
            )
        layer |= {"mlp.gate_proj.weight": (m, d), "mlp.up_proj.weight": (m, d), "mlp.down_proj.weight": (d, m)}
        layer |= {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        shapes |= under(f"transformer.layers.{index}.", layer)
    return shapes


def beats() -> Shapes:
    shapes: Shapes = {
        "patch_embedding.weight": (512, 1, 16, 16),
        **norm("layer_norm", 512),
        **linear("post_extract_proj", 768, 512),
        "encoder.pos_conv.0.bias": (768,),
        "encoder.pos_conv.0.weight_g": (1, 1, 128),
        "encoder.pos_conv.0.weight_v": (768, 48, 128),
        **norm("encoder.layer_norm", 768),
    }
    for index in range(12):
        layer: Shapes = {"self_attn.grep_a": (1, 12, 1, 1), "self_attn.relative_attention_bias.weight": (320, 12)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer |= linear(f"self_attn.{name}", 768, 768)
        layer |= linear("self_attn.grep_linear", 8, 64) | norm("self_attn_layer_norm", 768)
        layer |= linear("fc1", 3072, 768) | linear("fc2", 768, 3072) | norm("final_layer_norm", 768)
        shapes |= under(f"encoder.layers.{index}.", layer)
    return shapes


# Assemblies.


def visual(*, wrapped: bool) -> Shapes:
    vision = encoder("1B", 4, images=True) | aligning("1B", 4, linear_decoder, 3200, images=True)
    return {
        "temp": (),
        **under("vision_encoder.", vision),
        **under("text_encoder.", bert(1408, wrapped=wrapped)),
        **linear("vision_proj", 512, 768),
        **linear("text_proj", 512, 1024),
        **linear("itm_head", 2, 1024),
    }


def audio_visual(size: str, *, wrapped: bool, audio: bool) -> Shapes:
    vision = encoder(size, 4) | aligning(size, 4, linear_decoder, 3200, images=False)
    shapes = {
        "temp": (),
        **under("vision_encoder.", vision),
        **linear("av_concat_vision_proj.0", 768, SIZES[size][0]),
        **norm("av_concat_vision_proj.1", 768),
        **under("text_encoder.", bert(768, wrapped=wrapped)),
        **linear("vision_proj", 768, 768),
        **linear("text_proj", 768, 1024),
        **linear("itm_head", 2, 1024),
    }
    if audio:
        shapes |= under("audio_encoder.", beats()) | linear("audio_proj", 768, 768)
        shapes |= linear("av_concat_audio_proj.0", 768, 768) | norm("av_concat_audio_proj.1", 768)
        shapes |= linear("av_fusion", 768, 1536) | linear("avtm_head", 2, 1024)
    return shapes


def clip_large(size: str, *, lora: bool) -> Shapes:
    return {
        "temp": (),
        **under("vision_encoder.", encoder(size, 8)),
        **under("text_encoder.", llama(lora=lora)),
    }


def clip_small(size: str) -> Shapes:
    return {
        "temp": (),
        **under("vision_encoder.", encoder(size, 8)),
        **norm("vision_align.0", 768),
        **linear("vision_align.1", 512, 768),
        **under("text_encoder.", mobileclip()),
    }


@dataclass(frozen=True)
class Inventory:
    shapes: Callable[[], Shapes]
    num_tensors: int
    """Entries of the state dict, tensors that are repeated and buffers included."""
    num_parameters: int
    """Elements of parameters, shared ones once."""


_MERGED = {
    ("cls_avg1", "BN"): (547, 1_024_086_702),
    ("cls_avg1", "LN"): (544, 1_024_086_702),
    ("cls_avg1", "kaiming_BN"): (545, 1_024_083_886),
    ("cls_avg1_proj", "BN"): (547, 1_024_220_334),
    ("cls_avg1_proj", "LN"): (544, 1_024_220_334),
    ("cls_avg1_proj", "kaiming_BN"): (545, 1_024_217_518),
    ("cls_avgN", "BN"): (549, 1_026_949_294),
    ("cls_avgN", "LN"): (546, 1_026_949_294),
    ("cls_avgN", "kaiming_BN"): (547, 1_026_947_758),
    ("cls_avgN_proj", "BN"): (549, 1_027_082_926),
    ("cls_avgN_proj", "LN"): (546, 1_027_082_926),
    ("cls_avgN_proj", "kaiming_BN"): (547, 1_027_081_390),
    ("proj", "BN"): (542, 1_023_727_534),
    ("proj", "LN"): (542, 1_023_727_534),
    ("proj", "kaiming_BN"): (542, 1_023_727_534),
}

STAGE1 = {
    "ap_1B_f16_nc174": Inventory(partial(attentive_probe, "1B"), 548, 1_028_451_502),
    "ap_6B_f16_nc174": Inventory(partial(attentive_probe, "6B"), 652, 5_953_148_078),
    **{
        f"cat_1B_f16_nc174_{method}_{kind}": Inventory(partial(concatenating_probe, method, kind), *counts)
        for (method, kind), counts in _MERGED.items()
    },
    "distill_B14_MLP": Inventory(partial(distilled, "B14"), 217, 102_252_288),
    "distill_L14_MLP": Inventory(partial(distilled, "L14"), 373, 327_183_872),
    "distill_S14_MLP": Inventory(partial(distilled, "S14"), 217, 29_169_792),
    "finetune_1B_f16_nc710": Inventory(partial(classifier, "1B", 16, 710), 542, 1_024_139_718),
    "finetune_1B_f8_nc400": Inventory(partial(classifier, "1B", 8, 400), 542, 1_021_017_744),
    "finetune_1B_f8_nc710": Inventory(partial(classifier, "1B", 8, 710), 542, 1_021_256_134),
    "finetune_1B_sep_pos_embed_f8_nc400": Inventory(
        partial(classifier, "1B", 8, 400, separable=True), 544, 1_018_505_872
    ),
    "finetune_6B_f8_nc400": Inventory(partial(classifier, "6B", 8, 400), 646, 5_942_044_304),
    "finetune_B14_f8_nc400": Inventory(partial(classifier, "B14", 8, 400), 178, 89_748_112),
    "finetune_L14_f8_nc400": Inventory(partial(classifier, "L14", 8, 400), 334, 309_238_416),
    "finetune_S14_f8_nc400": Inventory(partial(classifier, "S14", 8, 400), 178, 23_352_976),
    "pretrain_1B": Inventory(partial(pretrained, "1B"), 592, 1_070_042_752),
    "pretrain_6B": Inventory(partial(pretrained, "6B"), 696, 6_075_947_392),
    "teacher_internvideo2_1B": Inventory(partial(encoder, "1B", 8), 538, 1_020_708_608),
    "teacher_internvideo2_6B": Inventory(partial(encoder, "6B", 8), 642, 5_941_735_168),
    "teacher_internvl_clip_6b": Inventory(internvl, 642, 5_936_000_768),
    "teacher_videomaev2_g": Inventory(videomae, 524, 1_011_610_752),
}

STAGE2 = {
    "clip_1B_lora": Inventory(partial(clip_large, "1B", lora=True), 958, 7_713_126_145),
    "clip_1B_nolora": Inventory(partial(clip_large, "1B", lora=False), 830, 7_704_737_537),
    "clip_6B_lora": Inventory(partial(clip_large, "6B", lora=True), 1062, 12_634_152_705),
    "clip_6B_nolora": Inventory(partial(clip_large, "6B", lora=False), 934, 12_625_764_097),
    "clip_B14": Inventory(partial(clip_small, "B14"), 328, 153_262_337),
    "clip_L14": Inventory(partial(clip_small, "L14"), 484, 372_752_641),
    "clip_S14": Inventory(partial(clip_small, "S14"), 328, 86_867_201),
    "stage2_audiovisual_1B_pretrain": Inventory(
        partial(audio_visual, "1B", wrapped=True, audio=True), 1285, 1_497_089_071
    ),
    "stage2_audiovisual_6B_ft_ret_noaudio": Inventory(
        partial(audio_visual, "6B", wrapped=False, audio=False), 1122, 6_360_140_931
    ),
    "stage2_audiovisual_6B_pretrain": Inventory(
        partial(audio_visual, "6B", wrapped=True, audio=True), 1389, 6_453_900_079
    ),
    "stage2_visual_1B_pretrain": Inventory(partial(visual, wrapped=True), 1023, 1_410_146_493),
    "stage2_visual_1B_ret": Inventory(partial(visual, wrapped=False), 1016, 1_409_064_323),
}

INVENTORIES = STAGE1 | STAGE2

REPEATED = (
    r"text_encoder\.cls\.predictions\.decoder\.(weight|bias)"
    r"|audio_encoder\.encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight"
)
"""Keys of tensors that are under another key too."""
BUFFERS = r".*\.(position_ids|running_mean|running_var|num_batches_tracked)"
INTEGERS = r".*\.(position_ids|num_batches_tracked)"

"""CLIP towers and the small CLIP model: features of clips, images and texts, loss and gradients.

Sub-models differ from their configuration in what their name says; sizes that it does not say come from their weights.
"""

import re

import torch
from torch import Tensor

from ivt2.losses.contrastive import contrastive_loss
from ivt2.models.clip import ClipModel
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.llama_text import LlamaText
from ivt2.models.mobileclip import MobileClipText
from tests.golden.case import Case, under
from tests.golden.internvideo2 import build_encoder, rename

MOBILECLIP_NAMES = (
    (r"^embedding_layer\.", "embedding."),
    (r"^positional_embedding\.pos_embed\.pos_embed$", "pos_embed"),
    (r"^transformer\.", "layers."),
    (r"\.pre_norm_mha\.0\.", ".norm1."),
    (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attn.qkv."),
    (r"\.pre_norm_mha\.1\.out_proj\.", ".attn.proj."),
    (r"\.pre_norm_ffn\.0\.", ".norm2."),
    (r"\.pre_norm_ffn\.1\.", ".mlp.fc1."),
    (r"\.pre_norm_ffn\.4\.", ".mlp.fc2."),
    (r"^final_layer_norm\.", "norm."),
    (r"^projection_layer$", "projection"),
)
NORMS = {"layer_norm", "layer_norm_fp32"}
VISION_TABLES = {"pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_cls", "cls_token"}
"""Names that the reference exempts from weight decay, whether the encoder has them or not."""

LORA_ALPHA, MIN_TEMPERATURE = 32, 0.01
"""The reference's, where a case does not say otherwise; the adapters' rank and targets are seen in their weights."""


def check(case: Case) -> None:
    checked: set[str] = set()

    def close(name: str, actual: Tensor, **tolerance: float) -> None:
        case.close(name, actual, **tolerance)
        checked.add(name)

    for name in ("vision", "vision_sep"):
        encoder = _vision(case, case.state(name))
        for kind in ("video", "image"):
            with torch.no_grad():
                close(f"{name}_{kind}", encoder(_video(case, kind)).pooled)
    _check_mobileclip(case, close)
    for name in ("llama_lora", "llama_plain"):
        with torch.no_grad():
            close(f"{name}_feat", _llama(case, name)(case.inputs["llama_tokens"]))
    _check_model(case, close)
    assert checked == set(case.outputs), f"not compared: {set(case.outputs) - checked}"


def _video(case: Case, kind: str) -> Tensor:
    return case.inputs[kind].transpose(1, 2)


def _check_mobileclip(case: Case, close) -> None:
    ids = case.inputs["tokens"]
    with torch.no_grad():
        text = _mobileclip(case.config["mobileclip"], case.state("mobileclip"))
        close("mc_feat", text(ids))
        close("mc_all_tokens", text.encode_tokens(ids))
        close("mc_embedding", text.embed(ids))
        close("mc_short", text(ids[:, : case.config["short"]]))
        bidirectional = case.config["mobileclip"] | {"causal_masking": False}
        text = _mobileclip(bidirectional, case.state("mobileclip_noncausal"))
        close("mcnc_feat", text(ids))
        close("mcnc_feat_padmask", text(ids, ids != 0))


def _check_model(case: Case, close) -> None:
    state = case.state("clip_small")
    ids = case.inputs["tokens"]
    with torch.no_grad():
        model = _clip(case, state)
        for kind, name in (("video", "clip_vision"), ("image", "clip_image")):
            feature = model.vision_align(model.vision_encoder(_video(case, kind)).pooled)
            close(name, feature)
            torch.testing.assert_close(
                model.encode_video(_video(case, kind)), feature / feature.norm(dim=1, keepdim=True)
            )
        feature = model.text_encoder(ids)
        close("clip_text", feature)
        torch.testing.assert_close(model.encode_text(ids), feature / feature.norm(dim=1, keepdim=True))
    listed = model.no_weight_decay() | {f"vision_encoder.{name}" for name in VISION_TABLES}
    assert len(listed) == case.json["no_weight_decay_count"]
    for output in case.outputs:
        if match := re.fullmatch(r"clip_loss_(\w+)", output):
            _check_gradients(case, _clip(case, state), match[1], close)


def _check_gradients(case: Case, model: ClipModel, ids: str, close) -> None:
    parameters = dict(model.named_parameters())
    order = [_rename_clip(name) for name in case.json["param_order"]]
    assert set(order) == set(parameters)
    trainable = {_rename_clip(name) for name in case.json["trainable"]}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
    model.clamp_temperature()
    video, text = model.encode_video(_video(case, "video")), model.encode_text(case.inputs["tokens"])
    loss = contrastive_loss(video, text, model.temperature, case.inputs[f"idx_{ids}"])
    close(f"clip_loss_{ids}", loss)
    close("temp_after_clamp", model.temperature.squeeze(0), atol=0, rtol=0)
    loss.backward()
    norms = [torch.zeros(()) if (grad := parameters[name].grad) is None else grad.norm() for name in order]
    # Some gradients (biases of keys) are zero but for rounding, which grows with 1 / temperature.
    close(f"clip_gradnorms_{ids}", torch.stack(norms), atol=1e-6, rtol=2e-4)


def _vision(case: Case, state: dict[str, Tensor]) -> InternVideo2:
    config = case.config["vision"] | {
        "depth": _num_layers(state, "blocks"),
        "sep_pos_embed": "pos_embed_spatial" in state,
    }
    encoder = build_encoder(config)
    encoder.load_state_dict({rename(name): value for name, value in state.items()})
    return encoder


def _mobileclip(config: dict, state: dict[str, Tensor]) -> MobileClipText:
    assert config.get("norm_layer", "layer_norm") in NORMS
    ratio = config["ffn_multiplier_per_layer"]
    text = MobileClipText(
        vocab_size=config["vocab_size"],
        context_length=config["context_length"],
        embed_dim=config["dim"],
        depth=config["n_transformer_layers"],
        num_heads=config["n_heads_per_layer"],
        mlp_ratio=[float(each) for each in ratio] if isinstance(ratio, list) else float(ratio),
        projection_dim=state["projection_layer"].shape[1],
        causal=config["causal_masking"],
        position_table=any(name.startswith("positional_embedding.") for name in state),
    ).eval()
    text.load_state_dict({_rename_mobileclip(name): _reshape(name, value) for name, value in state.items()})
    return text


def _llama(case: Case, name: str) -> LlamaText:
    state, config = case.state(name), case.config["llama"]
    lora = config | case.config.get("lora", {})
    down = {key: value for key, value in state.items() if ".lora_A." in key}
    text = LlamaText(
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads"),
        mlp_dim=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        rms_norm_eps=float(config["rms_norm_eps"]),
        rope_base=float(config.get("rope_theta", 10000.0)),
        projection_dim=state["text_projection"].shape[1],
        lora_rank=len(next(iter(down.values()))) if down else None,
        lora_alpha=float(lora.get("lora_alpha", LORA_ALPHA)),
        **({"lora_targets": sorted({key.split(".")[-4] for key in down})} if down else {}),
    ).eval()
    text.load_state_dict(state)
    return text


def _clip(case: Case, state: dict[str, Tensor]) -> ClipModel:
    parts = {prefix: under(state, f"{prefix}.") for prefix in ("vision_encoder", "text_encoder")}
    model = ClipModel(
        _vision(case, parts["vision_encoder"]),
        _mobileclip(case.config["mobileclip"], parts["text_encoder"]),
        vision_align=case.config["align_dim"],
        min_temperature=float(case.config.get("temp_min", MIN_TEMPERATURE)),
    ).eval()
    model.load_state_dict({_rename_clip(name): _reshape(name, value) for name, value in state.items()})
    return model


def _num_layers(state: dict[str, Tensor], name: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"{name}.")})


def _reshape(name: str, value: Tensor) -> Tensor:
    """The reference's table of positions has one leading dimension more, its temperature has none."""
    if name.endswith("positional_embedding.pos_embed.pos_embed"):
        return value.squeeze(0)
    return value.reshape(1) if name == "temp" else value


def _rename_mobileclip(name: str) -> str:
    for pattern, ours in MOBILECLIP_NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _rename_clip(name: str) -> str:
    if name == "temp":
        return "temperature"
    if name.startswith("text_encoder."):
        return f"text_encoder.{_rename_mobileclip(name.removeprefix('text_encoder.'))}"
    return rename(name)

"""BEATs and its filter bank: log-mel pictures, tokens, padding, relative positions, prediction head.

The sub-models are whatever ``config.models`` holds; each is built from its own options.
"""

import re

import torch
from torch import Tensor

from ivt2.models.beats import Beats, EncodedAudio, relative_position_buckets, share_valid
from ivt2.ops.filterbank import INT16_SCALE, log_mel, log_mel_features, mel_filterbank
from tests.golden.case import Case

MELS_OF_BEATS = 128
ACTIVATIONS = {"gelu_accurate": "gelu_tanh", "gelu_fast": "gelu_tanh"}
RENAMED = (
    (r"^encoder\.layer_norm", "encoder_norm"),
    (r"^encoder\.pos_conv\.0\.weight_g", "pos_conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v", "pos_conv.parametrizations.weight.original1"),
    (r"^encoder\.pos_conv\.0", "pos_conv"),
    (r"^encoder\.layers\.\d+\.self_attn\.relative_attention_bias", "relative_attention_bias"),
    (r"^encoder\.", ""),
)


def relative_position(config: dict) -> str:
    if not config.get("relative_position_embedding", False):
        return "none"
    return "gated" if config.get("gru_rel_pos", False) else "plain"


def build(config: dict) -> Beats:
    """The model of a reference configuration, whose missing options are those of the published constructor."""
    norm = "deep" if config.get("deep_norm", False) else "pre" if config.get("layer_norm_first", False) else "post"
    activation = config.get("activation_fn", "gelu")
    return Beats(
        patch_size=config["input_patch_size"],
        patch_dim=config.get("embed_dim", 512),
        patch_bias=config.get("conv_bias", False),
        embed_dim=config.get("encoder_embed_dim", 768),
        depth=config.get("encoder_layers", 12),
        num_heads=config.get("encoder_attention_heads", 12),
        mlp_dim=config.get("encoder_ffn_embed_dim", 3072),
        activation=ACTIVATIONS.get(activation, activation),
        norm=norm,
        position_kernel=config.get("conv_pos", 128),
        position_groups=config.get("conv_pos_groups", 16),
        relative_position=relative_position(config),
        num_buckets=config.get("num_buckets", 320),
        max_distance=config.get("max_distance", 1280),
        num_classes=config.get("predictor_class", 527) if config.get("finetuned_model", False) else 0,
        padding="reference",
    ).eval()


def rename(state: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """Reference weights under our names; the table that every layer repeats must be one and the same."""
    ours: dict[str, Tensor] = {}
    for reference_name, value in state.items():
        if relative_position(config) == "none" and ".grep_" in reference_name:
            continue  # gates without a bias to act on
        name = reference_name
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        assert name not in ours or torch.equal(ours[name], value), f"{name} differs between layers"
        ours[name] = value
    return ours


def load(case: Case, model: str) -> Beats:
    config = case.config["models"][model]
    beats = build(config)
    beats.load_state_dict(rename(case.state(model), config))
    return beats


@torch.no_grad()
def check(case: Case) -> None:
    checked: set[str] = set()

    def close(name: str, actual: Tensor, **tolerance: float) -> None:
        case.close(name, actual, **tolerance)
        checked.add(name)

    waveform = case.inputs["waveform"]
    fbank = log_mel_features(waveform, num_mels=MELS_OF_BEATS)
    close("fbank128_norm", fbank)
    close("fbank128_raw_first", log_mel(waveform[0] * INT16_SCALE, num_mels=MELS_OF_BEATS))
    close("mel_banks_64", mel_filterbank(64)[:, :-1])
    check_dataset_fbank(case, close)

    valid = share_valid(~case.inputs["wave_padding"], fbank.shape[1])
    for model in case.config["models"]:
        beats = load(case, model)
        if f"{model}_forward_fbank64" in case.outputs:
            close(f"{model}_forward_fbank64", beats(case.inputs["fbank64"]).tokens)
        for name, encoded in (
            (f"{model}_extract_features", beats(fbank)),
            (f"{model}_extract_features_padded", beats(fbank, valid)),
        ):
            close(name, extracted(beats, encoded))
        close(f"{model}_padding_mask_out", ~encoded.valid, atol=0, rtol=0)

    for name in case.outputs:
        if match := re.fullmatch(r"rel_(buckets|bias_layer0)_(\d+)x\2", name):
            close(name, relative(case, match[1], int(match[2])), atol=0, rtol=0)
    assert checked == set(case.outputs), f"not compared: {set(case.outputs) - checked}"


def extracted(beats: Beats, encoded: EncodedAudio) -> Tensor:
    return encoded.tokens if beats.predictor is None else beats.predict(encoded)


def check_dataset_fbank(case: Case, close) -> None:
    facts = case.json["dataset_fbank64"]
    num_frames, num_mels = facts["shape"]
    features = log_mel_features(case.inputs["waveform"][0], num_mels=num_mels, num_frames=num_frames)
    close(f"dataset_fbank{num_mels}_padded{num_frames}", features[: facts["stored_rows"]])
    assert features.shape == (num_frames, num_mels)
    assert not features[facts["valid_rows"] :].any()
    assert features[: facts["valid_rows"]].any(dim=1).all()
    assert facts["rest_all_zero"]


def relative(case: Case, kind: str, length: int) -> Tensor:
    """Of the first sub-model with a bias for distances."""
    models = case.config["models"]
    model = next(name for name in models if relative_position(models[name]) != "none")
    if kind == "bias_layer0":
        return load(case, model).position_bias(length)
    beats = build(models[model])
    return relative_position_buckets(length, beats.num_buckets, beats.max_distance)

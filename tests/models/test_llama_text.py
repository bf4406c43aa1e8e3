"""LLaMA as text encoder against transformers' own model; adapters against the product written out."""

import sys

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from ivt2.errors import InputError
from ivt2.models.llama_text import LlamaText, RotaryPositions

TINY = {
    "vocab_size": 40, "embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_dim": 24, "max_positions": 12,
    "projection_dim": 6,
}  # fmt: skip
LORA = {"lora_rank": 3, "lora_alpha": 6.0}
IDS = torch.tensor([[1, 7, 9, 30, 2, 0, 0], [1, 5, 2, 0, 0, 0, 0], [1, 8, 8, 8, 8, 39, 2]])
LAST = [4, 2, 6]


def make(**changes):
    torch.manual_seed(0)
    model = LlamaText(**TINY | changes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def judge(model, **changes):
    """transformers' model, built its own way, with the weights of ours."""
    options = {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "max_position_embeddings": 12, "rms_norm_eps": 1e-6, "attn_implementation": "eager",
    } | changes  # fmt: skip
    theirs = LlamaModel(LlamaConfig(**options)).eval()
    theirs.load_state_dict(model.transformer.state_dict())
    return theirs


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"num_kv_heads": 2}, {"num_key_value_heads": 2}),
        ({"rope_base": 500.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ({"rms_norm_eps": 0.1}, {"rms_norm_eps": 0.1}),
    ],
    ids=["plain", "shared keys", "other base", "other epsilon"],
)
def test_equals_transformers(ours, theirs):
    model = make(**ours)
    states = judge(model, **theirs)(input_ids=IDS, attention_mask=(IDS > 0).long()).last_hidden_state
    real = IDS > 0
    torch.testing.assert_close(model.encode_tokens(IDS)[real], states[real])
    expected = torch.stack([state[last] for state, last in zip(states, LAST, strict=True)]) @ model.text_projection
    torch.testing.assert_close(model(IDS), expected)


def test_padding_does_not_matter():
    model = make()
    torch.testing.assert_close(model(torch.nn.functional.pad(IDS, (0, 3))), model(IDS))
    torch.testing.assert_close(model(IDS[1:2, :3]), model(IDS)[1:2])
    assert model(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "down_proj")])
def test_adapters_add_their_scaled_product(targets):
    """Judge: transformers' model with ``W + 6 / 3 * B A`` written into its weights."""
    model = make(**LORA, lora_targets=targets)
    weights, parts = {}, model.transformer.state_dict()
    for name, value in parts.items():
        if "lora_" not in name:
            weights[name.replace(".base_layer", "")] = value
        elif ".lora_A." in name:
            layer = name.removesuffix(".lora_A.default.weight")
            weights[f"{layer}.weight"] = parts[f"{layer}.base_layer.weight"] + 2 * (
                parts[f"{layer}.lora_B.default.weight"] @ value
            )
    plain = make()
    plain.transformer.load_state_dict(weights)
    with torch.no_grad():
        plain.text_projection.copy_(model.text_projection)
    torch.testing.assert_close(model(IDS), plain(IDS), atol=1e-5, rtol=1e-4)
    assert sum(".lora_A." in name for name in parts) == 4


def test_merged_adapters_give_the_same_feature():
    model = make(**LORA)
    before = model(IDS)
    model.merge_lora()
    torch.testing.assert_close(model(IDS), before, atol=1e-6, rtol=1e-6)
    assert list(model.state_dict()) == list(make().state_dict())
    model.merge_lora()
    torch.testing.assert_close(model(IDS), before, atol=1e-6, rtol=1e-6)


def test_merging_half_precision_rounds_once():
    model = make(**LORA).bfloat16()
    layer = model.layers[0].self_attn.q_proj
    weight, up, down = (
        part.weight.detach().float().clone()
        for part in (layer.base_layer, layer.lora_B["default"], layer.lora_A["default"])
    )
    model.merge_lora()
    assert torch.equal(model.layers[0].self_attn.q_proj.weight, (weight + 2.0 * (up @ down)).bfloat16())


def test_adapters_start_without_effect_and_learn_alone():
    torch.manual_seed(0)
    adapted = LlamaText(**TINY, **LORA).eval()
    before = adapted(IDS)
    adapted.merge_lora()
    assert torch.equal(adapted(IDS), before)
    learning = {name for name, parameter in make(**LORA).named_parameters() if parameter.requires_grad}
    assert learning == {"text_projection"} | {name for name in make(**LORA).state_dict() if ".lora_" in name}
    assert all(parameter.requires_grad for parameter in make().parameters())


def test_dropout_of_the_adapters_is_on_in_training():
    model = make(**LORA, lora_dropout=0.5).train()
    assert not torch.equal(model(IDS), model(IDS))
    model = make(**LORA, lora_dropout=0.0).train()
    assert torch.equal(model(IDS), model(IDS))


@pytest.mark.parametrize("lora", [{}, LORA])
def test_tower_from_meta_is_complete_once_its_weights_are_assigned(lora):
    """Nothing outside the state dict may stay on meta, such as the frequencies of the positions."""
    model = make(**lora)
    with torch.device("meta"):
        empty = LlamaText(**TINY, **lora).eval()
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(model.state_dict(), assign=True)
    assert not [name for name, buffer in empty.named_buffers() if buffer.is_meta]
    assert torch.equal(empty(IDS), model(IDS))


def test_tower_from_meta_can_be_started_anew():
    with torch.device("meta"):
        model = LlamaText(**TINY, **LORA)
    model.to_empty(device="cpu")
    torch.manual_seed(3)
    model.reset_parameters()
    torch.manual_seed(3)
    other = LlamaText(**TINY, **LORA)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_half_precision_does_not_round_the_frequencies():
    """Measured: 0.4 % of the greatest feature; cosines and sines are those of float32, rounded."""
    model = make()
    expected, wide = model(IDS), RotaryPositions(4, base=10000.0)
    model = model.bfloat16()
    assert (model(IDS).float() - expected).abs().max() < 0.02 * expected.abs().max()
    positions = torch.arange(2000)[None]
    rounded = model.transformer.rotary_emb(torch.zeros(1, 2000, 16).bfloat16(), positions)
    for ours, full in zip(rounded, wide(torch.zeros(1, 2000, 16), positions), strict=True):
        assert torch.equal(ours, full.bfloat16())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 2, "lora_targets": ("q_proj", "query")}, "lora_targets=.*query.* must be some of q_proj"),
        ({"lora_rank": 2, "lora_targets": ()}, "must be some of"),
    ],
)
def test_adapters_of_layers_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_text_that_is_too_long_is_refused():
    with pytest.raises(InputError, match="text of 13 tokens exceeds max_positions=12: lower"):
        make()(torch.ones(1, 13, dtype=torch.long))


@pytest.mark.parametrize("package", ["transformers", "peft"])
def test_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}: pip install 'ivt2\[chat\]'"):
        make(**LORA)
    if package == "peft":
        make()


def test_names_of_the_parameters_are_fixed():
    """Key maps of released weights rely on them: peft's names of 2024 and later."""
    blocks = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
              "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]  # fmt: skip
    names = [f"layers.0.{name}.weight" for name in blocks] + ["embed_tokens.weight", "norm.weight"]
    plain = {"text_projection"} | {f"transformer.{name}" for name in names}
    assert set(make(depth=1).state_dict()) == plain
    wrapped = {f"transformer.layers.0.self_attn.{layer}_proj" for layer in "qv"}
    parts = ("base_layer", "lora_A.default", "lora_B.default")
    expected = plain - {f"{name}.weight" for name in wrapped}
    expected |= {f"{name}.{part}.weight" for name in wrapped for part in parts}
    assert set(make(depth=1, **LORA).state_dict()) == expected


def test_an_empty_batch_passes_through():
    model = make(**LORA)
    features = model(IDS[:0])
    assert features.shape == (0, 6)
    features.sum().backward()
    assert model.text_projection.grad.abs().sum() == 0

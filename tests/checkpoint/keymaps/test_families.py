"""The map of every family on a small network: there and back, other spellings, and what is refused."""

from functools import cache

import pytest
import torch

from ivt2.checkpoint.keymaps import audio, clip, stage1, stage2, teachers, text
from ivt2.checkpoint.keymaps.keymap import KeyMap, tensor_facts
from ivt2.errors import InputError
from tests.checkpoint.keymaps import tiny
from tests.checkpoint.keymaps.tiny import FAMILIES, filled


def read(key_map, state, file):
    plan = key_map.plan(tensor_facts(state), tensor_facts(file), source="file.pt")
    plan.check(file.__getitem__)
    return plan, {name: plan.read(name, file.__getitem__) for name in plan.names}


@cache
def family(name):
    key_map, build = FAMILIES[name]
    state = filled(build)
    return key_map, state, dict(key_map.write(state))


def same(got, state):
    return all(torch.equal(value, state[name]) for name, value in got.items())


def refusal(key_map, state, file):
    with pytest.raises(InputError) as caught:
        read(key_map, state, file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_there_and_back_keeps_every_bit(name, dtype):
    key_map, state, _ = family(name)
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    plan, got = read(key_map, state, dict(key_map.write(state)))
    assert same(got, state)
    missing = [key for key in state if key not in got]
    assert all("cross_attention" in key for key in missing)
    assert not missing or name == "bert"
    assert plan.dropped == {}
    again = dict(key_map.write(state | got))
    assert all(torch.equal(again[key], value) for key, value in dict(key_map.write(state)).items())


@pytest.mark.parametrize("name", FAMILIES)
def test_mutations_are_refused(name):
    key_map, state, file = family(name)
    originals = set(key_map.plan(tensor_facts(state), tensor_facts(file), source="").keys.values())
    keys = [key for key in originals if key.endswith(("norm1.weight", "attention.self.query.weight", "k_proj.weight"))]
    keys = keys or [key for key in originals if "pre_norm_mha.1.qkv_proj.weight" in key]
    key = sorted(keys)[0]

    def changed(**changes):
        return {other: value for other, value in file.items() if other != key} | changes

    label = f"file.pt: does not fit {key_map.name} (version 1 of its key map): "
    assert f"{label}1 missing ({key}); 0 unexpected; 0 of another shape;" in refusal(key_map, state, changed())
    message = refusal(key_map, state, changed(**{f"{key}_": file[key]}))
    assert f"{label}1 missing ({key}); 1 unexpected ({key}_); 0 of another shape;" in message
    assert f"{label}0 missing; 1 unexpected (extra);" in refusal(key_map, state, file | {"extra": torch.zeros(1)})
    wrong = file[key].new_zeros([*file[key].shape[:-1], file[key].shape[-1] + 1])
    message = refusal(key_map, state, changed(**{key: wrong}))
    assert f"1 of another shape ({key} {list(wrong.shape)} here {list(file[key].shape)})" in message
    message = refusal(key_map, state, changed(**{key: file[key].half()}))
    assert f"weights must all be float32, all float16 or all bfloat16, and are 1 float16 ({key});" in message
    doubled = {other: value.double() if value.is_floating_point() else value for other, value in file.items()}
    assert "float64 (" in refusal(key_map, state, doubled)


@pytest.mark.parametrize("copied", ["relative_attention_bias", "decoder.bias", "decoder.weight"])
def test_a_copy_that_differs_is_refused(copied):
    key_map, state, file = family("audio-visual")
    key = [key for key in file if copied in key][-1]
    message = refusal(key_map, state, file | {key: file[key] + 1})
    assert f"file.pt: {key} must repeat " in message
    message = refusal(key_map, state, {other: value for other, value in file.items() if other != key})
    assert f"1 missing ({key})" in message


def test_positions_that_do_not_count_are_refused():
    key_map, state, file = family("visual")
    key = "text_encoder.bert.embeddings.position_ids"
    assert file[key].tolist() == [list(range(9))]
    message = refusal(key_map, state, file | {key: file[key].flip(1)})
    assert f"{key} must hold 0 to 8 in order" in message
    assert f"{key} is float32, it must hold integers" in refusal(key_map, state, file | {key: file[key].float()})


def spelled(file, *pairs):
    for old, new in pairs:
        assert any(old in key for key in file)
        file = {key.replace(old, new): value for key, value in file.items()}
    return file


WEIGHT_NORM = (
    ("pos_conv.0.weight_g", "pos_conv.0.parametrizations.weight.original0"),
    ("pos_conv.0.weight_v", "pos_conv.0.parametrizations.weight.original1"),
)
TENSORFLOW = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("visual", [("text_encoder.bert.", "text_encoder.")]),
        ("visual-retrieval", [("text_encoder.", "text_encoder.bert.")]),
        ("audio-visual-silent", [("text_encoder.bert.", "text_encoder.")]),
        ("audio-visual", [("text_encoder.bert.", "text_encoder."), *WEIGHT_NORM]),
        ("beats", WEIGHT_NORM),
        ("bert", TENSORFLOW),
        ("bert", [("bert.", "")]),
        ("bert", [("bert.", ""), *TENSORFLOW]),
        ("clip-large", [(".base_layer", "")]),
        ("llama-lora", [(".base_layer", "")]),
        ("videomae", [("encoder.", "")]),
        ("mobileclip", [("text_encoder.", "")]),
    ],
)
def test_other_spellings_read_the_same(name, pairs):
    key_map, state, file = family(name)
    _, got = read(key_map, state, spelled(file, *pairs))
    assert same(got, state)


@pytest.mark.parametrize("name", FAMILIES)
def test_wrapper_prefixes_are_cut_off(name):
    key_map, state, file = family(name)
    for wrapper in key_map.wrappers:
        _, got = read(key_map, state, {f"{wrapper}{key}": value for key, value in file.items()})
        assert same(got, state)
    _, got = read(key_map, state, {f"model.module.{key}": value for key, value in file.items()})
    assert same(got, state)


def without(file, *parts):
    return {key: value for key, value in file.items() if not any(part in key for part in parts)}


def test_shared_tensors_may_be_stored_once():
    key_map, state, file = family("audio-visual")
    later = [f"layers.{index}.self_attn.relative_attention_bias" for index in (1, 2)]
    _, got = read(key_map, state, without(file, "predictions.decoder", "position_ids", *later))
    assert same(got, state)
    assert len(without(file, "predictions.decoder", "position_ids", *later)) == len(file) - 5


def test_bert_of_the_hub():
    key_map, state, file = family("bert")
    old = without(spelled(file, *TENSORFLOW), "predictions.decoder.bias", "position_ids")
    extra = {"bert.pooler.dense.weight": torch.zeros(8, 8), "cls.seq_relationship.weight": torch.zeros(2, 8)}
    plan, got = read(key_map, state, old | extra)
    assert same(got, state)
    assert set(plan.dropped) == set(extra)
    assert not any("cross_attention" in name for name in plan.names)
    pooled = filled(lambda: tiny.bert(pooler=True, masked_lm=False))
    plan, got = read(key_map, pooled, dict(key_map.write(pooled)) | {"cls.predictions.bias": torch.zeros(11)})
    assert {"pooler.weight", "pooler.bias"} <= set(got)
    assert set(plan.dropped) == {"cls.predictions.bias"}


def test_internvl_reads_kernels_for_images_and_for_clips():
    key_map, state, file = family("internvl")
    assert file["patch_embed.proj.weight"].shape == (16, 3, 14, 14)
    _, got = read(key_map, state, file | {"patch_embed.proj.weight": state["patch_embed.proj.weight"]})
    assert same(got, state)
    rest = {
        "transformer.norm.weight": torch.zeros(4),
        "text_projection": torch.zeros(4, 6),
        "logit_scale": torch.ones(()),
    }
    plan, _ = read(key_map, state, file | rest)
    assert set(plan.dropped) == set(rest)


def test_unused_norm_of_the_concatenating_probe():
    state = filled(lambda: tiny.concatenating("plain_batch", per_frame=False, with_pooled=False))
    file = dict(stage1.CONCATENATING_PROBE.write(state))
    assert "down_norm.num_batches_tracked" in file
    norm = {"fc_norm.weight": torch.ones(6), "fc_norm.bias": torch.ones(6)}
    plan, got = read(stage1.CONCATENATING_PROBE, state, file | norm)
    assert set(plan.dropped) == set(norm)
    assert same(got, state)
    assert got["head.merge_norm.num_batches_tracked"].dtype == torch.int64


def test_a_network_without_a_head_names_the_head_it_leaves():
    _, _, file = family("audio-visual")
    state = filled(lambda: tiny.silent(masked_lm=False))
    plan, _ = read(stage2.AUDIO_VISUAL, state, file)
    assert all(key.startswith(("text_encoder.cls.", "audio_", "av", "atm_")) for key in plan.dropped)
    assert len(set(plan.dropped.values())) == 5
    assert "missing (text_encoder.cls.predictions" in refusal(
        stage2.VISUAL, family("visual")[1], without(family("visual")[2], "text_encoder.cls.")
    )


def test_encoder_out_of_files_that_hold_more():
    state = filled(tiny.encoder)
    for name in ("pretrained", "distilled", "finetuned"):
        _, theirs, file = family(name)
        plan, got = read(teachers.INTERNVIDEO2_STAGE1, state, file)
        assert all(torch.equal(value, theirs[f"encoder.{key}"]) for key, value in got.items())
        assert len(plan.names) + len(plan.dropped) == len(file)
    for name in ("visual", "visual-retrieval", "audio-visual", "audio-visual-silent"):
        _, theirs, file = family(name)
        plan, got = read(teachers.INTERNVIDEO2_STAGE2, state, file)
        assert all(torch.equal(value, theirs[f"vision_encoder.{key}"]) for key, value in got.items())
        assert len(plan.names) + len(plan.dropped) == len(file)


def test_stage2_starts_from_stage1():
    _, theirs, file = family("pretrained")
    state = filled(tiny.visual)
    plan, got = read(stage2.VISION_FROM_STAGE1, state, file)
    assert torch.equal(got["vision_encoder.pos_embed"], theirs["encoder.pos_embed"])
    assert torch.equal(got["clip_decoders.final.head.weight"], theirs["clip_decoders.final.head.weight"])
    expected = [name for name in state if name.startswith(("vision_encoder.", "clip_decoders."))]
    assert set(expected) - set(plan.names) == {"vision_encoder.img_pos_embed", "clip_decoders.img_pos_embed"}
    assert all(key.startswith("mae_") for key in plan.dropped)


def test_large_clip_from_its_three_files():
    state = filled(tiny.clip_large)
    vision = dict(stage2.VISUAL.write(family("visual")[1]))
    plan, _ = read(clip.VISION_FROM_STAGE2, state, vision)
    assert plan.resized == ("vision_encoder.pos_embed",)
    assert len(plan.names) + len(plan.dropped) == len(vision)
    names = set(plan.names)

    internvl = spelled(dict(clip.TEXT_FROM_INTERNVL.write(state)), (".base_layer", "")) | dict(
        teachers.INTERNVL.write(family("internvl")[1])
    )
    internvl |= {
        "logit_scale": torch.ones(()),
        "norm3.bn.num_batches_tracked": torch.tensor(3),
        "transformer.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    plan, got = read(clip.TEXT_FROM_INTERNVL, state, internvl)
    assert same(got, state)
    assert len(plan.names) + len(plan.dropped) == len(internvl)
    names |= set(plan.names)

    delta = dict(clip.DELTA_LARGE.write(state))
    assert len(delta) == 15
    frequencies = {
        f"text_encoder.transformer.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2).half() for i in range(2)
    }
    plan, got = read(clip.DELTA_LARGE, state, delta | frequencies)
    assert same(got, state)
    assert set(plan.dropped) == set(frequencies)
    assert names | set(plan.names) == set(state)
    assert "1 unexpected (vision_encoder.cls_token)" in refusal(
        clip.DELTA_LARGE, state, delta | {"vision_encoder.cls_token": torch.zeros(1, 1, 16)}
    )


def test_small_clip_from_its_three_files():
    state = filled(tiny.clip_small)
    vision, _ = read(clip.VISION_FROM_DISTILLED, state, family("distilled")[2])
    apple = dict(clip.TEXT_FROM_MOBILECLIP.write(state)) | {
        "image_encoder.x": torch.ones(1),
        "logit_scale": torch.ones(()),
    }
    tower, got = read(clip.TEXT_FROM_MOBILECLIP, state, apple)
    assert same(got, state)
    assert set(tower.dropped) == {"image_encoder.x", "logit_scale"}
    delta, got = read(clip.DELTA_SMALL, state, dict(clip.DELTA_SMALL.write(state)))
    assert same(got, state)
    assert len(delta.names) == 19
    assert {*vision.names, *tower.names, *delta.names} == set(state)


def test_text_positions_are_no_table_of_frames():
    key_map, state, file = family("clip-small")
    key = "text_encoder.positional_embedding.pos_embed.pos_embed"
    assert f"1 of another shape ({key} [1, 1, 6, 8] here [1, 1, 5, 8])" in refusal(
        key_map, state, file | {key: torch.zeros(1, 1, 6, 8)}
    )


def test_lora_is_neither_invented_nor_ignored():
    _, with_lora, adapted = family("clip-large")
    _, without_lora, plain = family("clip-large-plain")
    message = refusal(clip.LARGE, with_lora, plain)
    assert "8 missing" in message
    assert "lora_A" in message
    assert "the network has LoRA adapters and the file has none" in message
    message = refusal(clip.LARGE, without_lora, spelled(adapted, (".base_layer", "")))
    assert "0 missing; 8 unexpected (" in message
    assert "the file has LoRA adapters: build the network with them" in message


def test_audio_encoder_of_a_whole_network():
    _, theirs, file = family("beats")
    state = filled(tiny.audio_visual)
    plan, got = read(audio.BEATS.under("audio_encoder."), state, file)
    assert set(plan.names) == {name for name in state if name.startswith("audio_encoder.")}
    assert same(got, {f"audio_encoder.{name}": value for name, value in theirs.items()})


@pytest.mark.parametrize(
    ("name", "other", "kind"),
    [
        ("pretrained", "visual", "a stage-2 file"),
        ("visual", "pretrained", "a stage-1 pretraining file"),
        ("visual", "bert", "a BERT file"),
        ("bert", "beats", "a BEATs file"),
        ("mobileclip", "clip-large", "a file with the LLaMA text tower"),
        ("llama-plain", "clip-small", "a file with the MobileCLIP text tower"),
        ("beats", "distilled", "a distilled student"),
        ("beats", "finetuned", "a classifier"),
        ("beats", "attentive-probe", "a classifier with the attentive probe's head"),
        ("beats", "concatenating-batch", "a classifier with the concatenating head"),
        ("beats", "videomae", "a VideoMAE encoder"),
        ("beats", "teacher-stage1", "a bare video encoder"),
    ],
)
def test_swapped_files_are_recognised(name, other, kind):
    key_map, state, _ = family(name)
    assert f"; the file looks like {kind}; nothing was loaded" in refusal(key_map, state, family(other)[2])


def test_another_size_is_recognised():
    key_map, state, file = family("distilled")
    wide = {key: value.new_zeros([2 * size for size in value.shape]) for key, value in file.items()}
    wide = {key: value for key, value in wide.items() if "blocks.1." not in key}
    assert "the file has 1 blocks of width 32, the network 2 of width 16" in refusal(key_map, state, wide)
    assert "the file is of no kind known here" in refusal(key_map, state, {"weight": torch.zeros(1)})


def test_tables_of_all_kinds_are_given_back_to_resize():
    for name, tables in {
        "pretrained": {"encoder.pos_embed", "clip_decoders.pos_embed", "mae_decoders.pos_embed"},
        "visual": {
            f"{holder}.{table}"
            for holder in ("vision_encoder", "clip_decoders")
            for table in ("pos_embed", "img_pos_embed")
        },
        "internvl": {"pos_embed"},
        "pretrained-separable": {
            f"{holder}.pos_embed_{axis}"
            for holder in ("encoder", "clip_decoders", "mae_decoders")
            for axis in ("spatial", "temporal")
        },
    }.items():
        key_map, state, file = family(name)
        longer = {
            key: torch.cat([value, value], dim=1) if "pos_embed" in key and not key.endswith("_cls") else value
            for key, value in file.items()
        }
        plan, _ = read(key_map, state, longer)
        assert set(plan.resized) == tables


def test_names_of_maps_are_their_own():
    maps = [value for module in (audio, clip, stage1, stage2, teachers, text) for value in vars(module).values()]
    maps = [value for value in maps if isinstance(value, KeyMap)]
    assert len({value.name for value in maps}) == len({id(value) for value in maps}) == 26
    assert all(value.version == 1 for value in maps)

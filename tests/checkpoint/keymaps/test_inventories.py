"""Every map against the reference's own networks, on the meta device: the same keys, shapes and counts."""

import math
import re
from itertools import product
from pathlib import Path

import pytest
import torch

from ivt2.checkpoint.keymaps import clip, stage1, stage2, teachers
from ivt2.checkpoint.keymaps.keymap import TensorFacts, tensor_facts
from ivt2.models import published
from tests.checkpoint.keymaps.inventories import (
    BUFFERS,
    INTEGERS,
    INVENTORIES,
    REPEATED,
    STAGE1,
    internvl,
    llama,
    mobileclip,
    under,
)

FOLDER = Path(__file__).parents[4] / "shared" / "spec" / "keys"


def classifier(*arguments, key_map=stage1.FINETUNED, **options):
    size, num_frames, num_classes = arguments
    return key_map, lambda: published.video_classifier(size, num_frames=num_frames, num_classes=num_classes, **options)


def concatenating(method, kind):
    if method == "proj":
        return classifier("1b", 16, 174, key_map=stage1.CONCATENATING_PROBE)
    merge_norm = {"LN": "layer", "BN": "batch", "kaiming_BN": "plain_batch"}[kind]
    return stage1.CONCATENATING_PROBE, lambda: published.concat_classifier(
        "1b",
        num_classes=174,
        num_frames=16,
        per_frame="avgN" in method,
        with_pooled=method.endswith("_proj"),
        merge_norm=merge_norm,
    )


NETWORKS = {
    "ap_1B_f16_nc174": classifier("1b", 16, 174, key_map=stage1.ATTENTIVE_PROBE, extra_mlp=True),
    "ap_6B_f16_nc174": classifier("6b", 16, 174, key_map=stage1.ATTENTIVE_PROBE, extra_mlp=True),
    **{
        f"cat_1B_f16_nc174_{method}_{kind}": concatenating(method, kind)
        for method, kind in product(
            ("proj", "cls_avg1", "cls_avgN", "cls_avg1_proj", "cls_avgN_proj"), ("LN", "BN", "kaiming_BN")
        )
    },
    "distill_S14_MLP": (stage1.DISTILLED, lambda: published.distilled_student("s14")),
    "distill_B14_MLP": (stage1.DISTILLED, lambda: published.distilled_student("b14")),
    "distill_L14_MLP": (stage1.DISTILLED, lambda: published.distilled_student("l14")),
    "finetune_S14_f8_nc400": classifier("s14", 8, 400),
    "finetune_B14_f8_nc400": classifier("b14", 8, 400),
    "finetune_L14_f8_nc400": classifier("l14", 8, 400),
    "finetune_1B_f8_nc400": classifier("1b", 8, 400),
    "finetune_1B_f8_nc710": classifier("1b", 8, 710),
    "finetune_1B_f16_nc710": classifier("1b", 16, 710),
    "finetune_1B_sep_pos_embed_f8_nc400": classifier("1b", 8, 400, position="separable"),
    "finetune_6B_f8_nc400": classifier("6b", 8, 400),
    "pretrain_1B": (stage1.PRETRAIN, lambda: published.stage1_student("1b")),
    "pretrain_6B": (stage1.PRETRAIN, lambda: published.stage1_student("6b")),
    "teacher_internvideo2_1B": (
        teachers.INTERNVIDEO2_STAGE1, lambda: published.video_encoder("1b", num_frames=8)
    ),
    "teacher_internvideo2_6B": (
        teachers.INTERNVIDEO2_STAGE1, lambda: published.video_encoder("6b", num_frames=8)
    ),
    "teacher_internvl_clip_6b": (teachers.INTERNVL, published.internvl_c),
    "teacher_videomaev2_g": (teachers.VIDEOMAE, published.videomae_v2_g),
    "clip_1B_lora": (clip.LARGE, lambda: published.clip_large("1b")),
    "clip_1B_nolora": (clip.LARGE, lambda: published.clip_large("1b", lora=False)),
    "clip_6B_lora": (clip.LARGE, lambda: published.clip_large("6b")),
    "clip_6B_nolora": (clip.LARGE, lambda: published.clip_large("6b", lora=False)),
    "clip_S14": (clip.SMALL, lambda: published.clip_small("s14")),
    "clip_B14": (clip.SMALL, lambda: published.clip_small("b14")),
    "clip_L14": (clip.SMALL, lambda: published.clip_small("l14")),
    "stage2_visual_1B_pretrain": (stage2.VISUAL, published.stage2_visual),
    "stage2_visual_1B_ret": (stage2.VISUAL_RETRIEVAL, lambda: published.stage2_visual(masked_lm=False)),
    "stage2_audiovisual_1B_pretrain": (stage2.AUDIO_VISUAL, lambda: published.stage2_audio_visual("1b")),
    "stage2_audiovisual_6B_pretrain": (stage2.AUDIO_VISUAL, lambda: published.stage2_audio_visual("6b")),
    "stage2_audiovisual_6B_ft_ret_noaudio": (
        stage2.AUDIO_VISUAL_RETRIEVAL,
        lambda: published.stage2_audio_visual("6b", audio=False, masked_lm=False),
    ),
}  # fmt: skip


def facts(shapes):
    return {
        key: TensorFacts(shape, torch.int64 if re.fullmatch(INTEGERS, key) else torch.bfloat16)
        for key, shape in shapes.items()
    }


def test_every_inventory_has_a_network():
    assert set(NETWORKS) == set(INVENTORIES)


@pytest.mark.parametrize("name", INVENTORIES)
def test_counts_of_the_inventory(name):
    inventory = INVENTORIES[name]
    shapes = inventory.shapes()
    assert len(shapes) == inventory.num_tensors
    parameters = [math.prod(s) for key, s in shapes.items() if not re.fullmatch(f"{REPEATED}|{BUFFERS}", key)]
    assert sum(parameters) == inventory.num_parameters


@pytest.mark.parametrize("name", INVENTORIES)
def test_covers_exactly_the_inventory(name):
    key_map, build = NETWORKS[name]
    file = facts(INVENTORIES[name].shapes())
    with torch.device("meta"):
        network = build()
    state = tensor_facts(network.state_dict())
    plan = key_map.plan(state, file, source=name)

    unused = {"fc_norm.weight", "fc_norm.bias"} if re.search(r"cls_avg.(_LN|_BN|_kaiming_BN)$", name) else set()
    assert set(plan.dropped) == unused
    assert plan.names == tuple(state)
    assert plan.resized == ()
    accounted = [*plan.keys.values(), *plan.dropped, *plan.copies, *plan.positions]
    assert sorted(accounted) == sorted(file)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    assert num_parameters + sum(math.prod(file[key].shape) for key in unused) == INVENTORIES[name].num_parameters

    written = {key: tuple(tensor.shape) for key, tensor in key_map.write(network.state_dict())}
    expected = {key: value.shape for key, value in file.items() if key not in unused}
    if key_map is teachers.INTERNVL:
        expected["patch_embed.proj.weight"] = (3200, 3, 14, 14)
    if key_map is teachers.VIDEOMAE:
        expected = {f"encoder.{key}": shape for key, shape in expected.items()}
    assert written == expected


DELTAS = {
    "clip_1B_lora": (clip.DELTA_LARGE, 15, 7_042_177),
    "clip_6B_lora": (clip.DELTA_LARGE, 15, 33_207_169),
    "clip_S14": (clip.DELTA_SMALL, 19, 1_136_769),
    "clip_B14": (clip.DELTA_SMALL, 19, 2_762_241),
    "clip_L14": (clip.DELTA_SMALL, 19, 4_337_409),
}
"""Weights that the reference trains on top of the base, and their elements."""

BASES = {
    "clip_1B_lora": ("stage2_visual_1B_pretrain", clip.VISION_FROM_STAGE2, clip.TEXT_FROM_INTERNVL),
    "clip_6B_lora": ("stage2_audiovisual_6B_pretrain", clip.VISION_FROM_STAGE2, clip.TEXT_FROM_INTERNVL),
    "clip_S14": ("distill_S14_MLP", clip.VISION_FROM_DISTILLED, clip.TEXT_FROM_MOBILECLIP),
    "clip_B14": ("distill_B14_MLP", clip.VISION_FROM_DISTILLED, clip.TEXT_FROM_MOBILECLIP),
    "clip_L14": ("distill_L14_MLP", clip.VISION_FROM_DISTILLED, clip.TEXT_FROM_MOBILECLIP),
}


@pytest.mark.parametrize("name", DELTAS)
def test_released_clip_files_and_their_bases_make_whole_networks(name):
    delta, num_tensors, num_parameters = DELTAS[name]
    base, vision, text = BASES[name]
    with torch.device("meta"):
        network = NETWORKS[name][1]().state_dict()
    state = tensor_facts(network)
    trained = dict(delta.write(network))
    assert len(trained) == num_tensors
    assert sum(tensor.numel() for tensor in trained.values()) == num_parameters

    tower = internvl_c() if text is clip.TEXT_FROM_INTERNVL else under("text_encoder.", mobileclip())
    plans = [
        vision.plan(state, facts(INVENTORIES[base].shapes()), source="vision"),
        text.plan(state, facts(tower), source="text"),
        delta.plan(state, tensor_facts(trained), source="delta"),
    ]
    assert {given for plan in plans for given in plan.names} == set(state)
    resized = ("vision_encoder.pos_embed",) if "stage2" in base else ()
    assert [plan.resized for plan in plans] == [resized, (), ()]


def internvl_c():
    """The published file, with the names of peft before 0.7 and what was left from training."""
    text = {key.replace(".base_layer", ""): shape for key, shape in llama(lora=True).items()}
    frequencies = {f"transformer.layers.{index}.self_attn.rotary_emb.inv_freq": (64,) for index in range(32)}
    return internvl() | text | frequencies | {"logit_scale": (), "target_pos_embed": (1, 256, 3200)}


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the full lists of keys are not beside this checkout")
@pytest.mark.parametrize("name", INVENTORIES)
def test_formulas_say_what_the_full_lists_say(name):
    file = FOLDER / ("stage1" if name in STAGE1 else "stage2") / f"{name}.txt"
    assert INVENTORIES[name].shapes() == (parse_stage1 if name in STAGE1 else parse_stage2)(file)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the full lists of keys are not beside this checkout")
def test_no_list_is_left_out():
    assert {file.stem for file in FOLDER.glob("stage?/*.txt") if "_index" not in file.stem} == set(INVENTORIES)


def parse_stage1(file):
    shapes = {}
    for line in file.read_text().splitlines():
        if match := re.fullmatch(r"(\S+)\s+\[(.*?)\](?:\s+x\d+ i=0\.\.(\d+))?", line):
            for index in range(int(match[3] or 0) + 1):
                shapes[match[1].replace("{i}", str(index))] = dims(match[2])
    return shapes


def parse_stage2(file):
    shapes = {}
    for line in file.read_text().splitlines():
        match = re.fullmatch(r"([\w.{}]+) \| (.+) \| \[(.*)\](?: torch\.int64)?", line)
        if not match:
            continue
        choices = [[]] if match[2] == "-" else [indices(part) for part in match[2].split(" x ")]
        for chosen in product(*choices) if match[2] != "-" else [()]:
            shapes[match[1].format(*chosen)] = dims(match[3])
    return shapes


def indices(text):
    ranges = [part.split("..") for part in text.split(",")]
    return [index for first, *last in ranges for index in range(int(first), int(last[0] if last else first) + 1)]


def dims(text):
    return tuple(int(number) for number in text.split(",") if number.strip())

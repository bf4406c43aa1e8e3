"""The maps read the recorded reference weights as the recorded cases' own tables of names do."""

import os
from pathlib import Path

import pytest
import torch

from ivt2.checkpoint.keymaps import audio, clip, stage1, stage2, teachers, text
from ivt2.checkpoint.keymaps.keymap import tensor_facts
from tests.golden import internvideo2
from tests.golden import teachers as recorded_teachers
from tests.golden.case import Case
from tests.golden.checks import c01b_stage1_heads_ap_cat, c08_stage2_model, c09_beats, c10_clip

FOLDER = Path(os.environ.get("IVT2_GOLDEN_DIR", Path(__file__).parents[4] / "shared" / "golden"))
TEACHERS = {
    "internvl": (teachers.INTERNVL, recorded_teachers.build_internvl),
    "iv2_teacher": (teachers.INTERNVIDEO2_STAGE1, recorded_teachers.build_internvideo2),
    "videomae": (teachers.VIDEOMAE, recorded_teachers.build_videomae),
}


def cases(name):
    files = sorted(FOLDER.glob(f"{name}_*.json"))
    skip = pytest.mark.skip(reason=f"no recorded case {name} in {FOLDER}: set IVT2_GOLDEN_DIR")
    return pytest.mark.parametrize("case", [Case(file) for file in files] or [pytest.param(None, marks=skip)])


def check(key_map, network, state):
    """Whether the map finds in ``state`` what ``network`` was filled with by other means."""
    plan = key_map.plan(tensor_facts(network.state_dict()), tensor_facts(state), source="recorded")
    plan.check(state.__getitem__)
    assert plan.names == tuple(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(plan.read(name, state.__getitem__), value), name
    return plan


@cases("c01b_stage1_heads_ap_cat")
def test_heads(case):
    for name in case.config:
        network = c01b_stage1_heads_ap_cat._load(case, name)
        extra = "extra_mlp.0.weight" in case.state(name)
        check(stage1.ATTENTIVE_PROBE if extra else stage1.CONCATENATING_PROBE, network, case.state(name))


@cases("c02_stage1_pretrain_student")
def test_students_of_pretraining(case):
    for name, config in case.config.items():
        check(stage1.PRETRAIN, internvideo2.load_student(config, case.state(name)), case.state(name))


@cases("c11_distill_student")
def test_students_of_distillation(case):
    for name in case.config:
        check(stage1.DISTILLED, internvideo2.load_student(case.config[name], case.state(name)), case.state(name))


@cases("c03_teachers")
def test_teachers(case):
    for name, (key_map, build) in TEACHERS.items():
        state = case.state(name)
        network = build(case.config[name], state)
        if name == "videomae":
            state.pop("pos_embed", None)  # recorded as a parameter here; it has no key in the published file
        check(key_map, network.encoder, state)


@cases("c08_stage2_model")
def test_stage2(case):
    network = c08_stage2_model.Recorded(case).model
    plan = check(stage2.VISUAL, network, case.state("stage2"))
    assert all(key.startswith("clip_teacher.") for key in plan.dropped)


@cases("c09_beats")
def test_beats(case):
    for name in case.config["models"]:
        check(audio.BEATS, c09_beats.load(case, name), case.state(name))


@cases("c10_clip")
def test_clip(case):
    for name in ("llama_lora", "llama_plain"):
        check(text.LLAMA, c10_clip._llama(case, name), case.state(name))
    state = case.state("clip_small")
    check(clip.SMALL, c10_clip._clip(case, state), state)
    state = case.state("mobileclip")
    check(text.MOBILECLIP, c10_clip._mobileclip(case.config["mobileclip"], state), state)
    for name in ("vision", "vision_sep"):
        check(teachers.INTERNVIDEO2_STAGE1, c10_clip._vision(case, case.state(name)), case.state(name))

"""Exact: the published recipes of stage 1 and of distillation, as numbers that a run would have."""

import pytest
import torch
from hydra.utils import instantiate

from tests.conf.recipes import config, module

S14, B14, L14 = 29_169_792, 102_252_288, 327_183_872
"""Weights of students with their decoders, as the reference counts them."""
RECIPES = {  # weights, clips a step, peak and final rate, epochs of the warm-up and of all, clipping, drop path, taps
    "stage1_1b": (1_070_042_752, 4096, 2.4e-3, 1.6e-4, 40, 301, 3.0, 0.25, range(34, 40)),
    "stage1_6b": (6_075_947_392, 2048, 1.2e-3, 8e-5, 40, 301, 3.0, 0.3, range(42, 48)),
    "distill_s14": (S14, 4096, 1.6e-2, 1.6e-4, 20, 101, 5.0, 0.05, range(6, 12)),
    "distill_b14": (B14, 4096, 1.6e-2, 1.6e-4, 20, 101, 5.0, 0.05, range(6, 12)),
    "distill_l14": (L14, 2048, 8e-3, 8e-5, 20, 101, 5.0, 0.05, range(18, 24)),
    "distill_joint": (S14 + B14 + L14, 4096, 1.6e-2, 1.6e-4, 20, 101, 5.0, 0.05, None),
}
JOINT_TAPS = {"s14": range(6, 12), "b14": range(6, 12), "l14": range(18, 24)}


@pytest.mark.parametrize("name", RECIPES)
def test_students_are_the_published_networks(name):
    number, *_, drop_path, taps = RECIPES[name]
    students = module(name).named_students()
    assert sum(parameter.numel() for parameter in module(name).parameters()) == number
    for student, network in students.items():
        assert network.clip_taps == tuple(JOINT_TAPS[student] if student else taps)
        assert network.encoder.num_frames == 8
        assert network.encoder.blocks[-1].drop_path1.rate == pytest.approx(drop_path)
    if name.startswith("stage1"):
        depth = students[""].encoder.depth
        assert students[""].mae_taps == tuple(range(depth - 4, depth))
        assert students[""].encoder.checkpoint_blocks == depth


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("steps_of_an_epoch", [1, 268, 537, 976])
def test_rates_rise_to_the_peak_at_the_end_of_the_warm_up(name, steps_of_an_epoch):
    _, clips, peak, final, warmup, epochs, *_ = RECIPES[name]
    cfg = config(name)
    assert cfg.datamodule.global_batch_size == clips
    assert cfg.trainer.max_epochs == epochs
    optimizer = instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    total = epochs * steps_of_an_epoch
    rule = instantiate(cfg.schedule)(optimizer, total_steps=total)
    first = warmup * steps_of_an_epoch
    rates = {step: rule.base_lrs[0] * rule.lr_lambdas[0](step) for step in (0, first - 2, first - 1, first, total)}
    assert rates[0] == 0
    assert rates[first - 2] == pytest.approx(peak * (first - 2) / (first - 1), rel=1e-6)
    assert rates[first - 1] == rates[first] == pytest.approx(peak, rel=1e-6)
    assert rates[total] == pytest.approx(final, rel=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_optimizer_masks_and_engine(name):
    cfg = config(name)
    optimizer = cfg.optimizer
    assert (optimizer.weight_decay, list(optimizer.betas), optimizer.eps) == (0.05, [0.9, 0.98], 1e-6)
    assert cfg.trainer.gradient_clip_val == RECIPES[name][6]
    assert cfg.trainer.precision == "bf16-mixed"
    assert (cfg.module.masking, cfg.module.mask_ratio, cfg.module.masks_per_clip) == ("attention", 0.8, 1)
    assert set(cfg.module.weights.values()) == {1.0}
    assert cfg.run == ["fit"]
    assert cfg.datamodule.num_frames == (16 if name.startswith("stage1") else 8)
    assert cfg.datamodule.num_frames == module(name).targets.num_frames


@pytest.mark.parametrize("name", ["stage1_1b", "distill_joint"])
def test_teachers_are_the_published_ones(name):
    teachers = module(name).targets._teachers
    found = {
        role: (sum(each.numel() for each in teacher.encoder.parameters()), teacher.taps)
        for role, teacher in teachers.items()
    }
    if name == "stage1_1b":
        assert found == {
            "clip": (5_936_000_768, (42, 43, 44, 45, 46, 47)),
            "mae": (1_011_610_752, (36, 37, 38, 39)),
        }
    else:
        own_table = 257 * 1408  # of images, in stage 2's file
        assert found == {"clip": (1_020_708_608 + own_table, (23, 26, 29, 33, 36, 39))}


@pytest.mark.parametrize("name", ["stage1_1b", "distill_s14"])
def test_teachers_of_recipes_must_have_their_weights(name):
    cfg = config(name).module
    teachers = [cfg.clip_teacher, cfg.mae_teacher] if name == "stage1_1b" else [cfg.teacher]
    assert all(teacher.weights for teacher in teachers)

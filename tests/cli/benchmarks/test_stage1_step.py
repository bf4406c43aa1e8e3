"""Steps of stage 1: what the figure is made of, and mistakes."""

from functools import partial

import pytest
import torch

from ivt2.cli.benchmarks.device_steps import WARM_UPS
from ivt2.cli.benchmarks.flops import step_flops
from ivt2.cli.benchmarks.stage1_step import Stage1StepSuite
from ivt2.errors import InputError
from ivt2.modules.stage1 import Stage1Module
from tests.modules.masked_case import student, teacher_of_frames, teacher_of_tubelets


def of(make, asked):
    """A maker that remembers which formats it was asked for."""
    return lambda dtype: (asked.append(dtype), make().set_format(dtype))[1]


def suite(asked=None, **options):
    formats = [] if asked is None else asked
    given = {
        "student": student(),
        "clip_teacher": of(teacher_of_frames, formats),
        "mae_teacher": of(teacher_of_tubelets, formats),
        "optimizer": partial(torch.optim.AdamW, lr=1e-3),
        "teacher_dtypes": ["float32", "bfloat16"],
        "batch_sizes": [2],
        "mask_ratio": 0.6,
        "masks_per_clip": 2,
        "bf16": False,
        "compile": False,
        "device": "cpu",
        "peak_flops": 1e9,
        "num_steps": 3,
    }
    return Stage1StepSuite(**given | options)


def test_figures_are_shares_of_the_peak_rate(tmp_path, monkeypatch):
    asked, ticks = [], []
    measured = suite(asked)
    before = {name: each.clone() for name, each in measured.student.state_dict().items()}
    steps = []
    original = Stage1Module.training_step
    monkeypatch.setattr(
        Stage1Module,
        "training_step",
        lambda module, batch, number: (steps.append(len(batch["video"])), original(module, batch, number))[1],
    )
    flops = measured.count()
    assert flops == step_flops(
        student(), [teacher_of_frames(), teacher_of_tubelets()], mask_ratio=0.6, masks_per_clip=2
    )
    asked.clear()
    figures = list(measured.run(tmp_path, lambda: ticks.append(1)))
    assert [figure.what for figure in figures] == ["2 clips, teachers in float32", "2 clips, teachers in bfloat16"]
    assert asked == ["bfloat16"] * 2 + ["float32"] * 2 + ["bfloat16"] * 2  # the first two are counted, not run
    assert len(ticks) == measured.turns == 6
    assert steps == [2] * 2 * (WARM_UPS + 3)
    for figure in figures:
        details = figure.details
        assert details["GFLOP a clip"] == flops.total / 1e9
        share = 100 * details["clips/s"] * flops.total / 1e9
        assert figure.value.median == pytest.approx(share)
        assert details["step ms"] == pytest.approx(1e3 * 2 / details["clips/s"])
    assert any((each != before[name]).any() for name, each in measured.student.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps=0: must be at least 1"),
        ({"peak_flops": 0.0}, "peak_flops=0.0: give the device's rate"),
        ({"peak_flops": float("inf")}, "peak_flops=inf"),
        ({"device": "meta"}, "device=meta: not usable here"),
        ({"device": "toaster"}, "device=toaster: not usable here"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        suite(**options)

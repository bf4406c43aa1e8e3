"""Exact: steps without a Trainer train as the module says; a recalled teacher says the same and is not asked again."""

import warnings

import pytest
import torch

from ivt2.cli.benchmarks.masked_steps import Recalled, Steps, clips, without_trainer
from tests.modules.masked_case import distill, teacher_of_clips


def weights(module):
    return torch.cat([each.detach().flatten() for each in module.parameters()])


def test_steps_train_and_a_recalled_teacher_is_asked_once():
    teacher = teacher_of_clips()
    batch = clips(teacher.encoder, 2)
    asked, original = [], teacher.encoder.forward
    teacher.encoder.forward = lambda *given, **named: asked.append(given) or original(*given, **named)
    found = []
    with without_trainer():
        for recall, passes in ((False, 4), (True, 1)):
            asked.clear()
            module = distill(teacher=Recalled(teacher, batch["video"]) if recall else teacher)
            start = weights(module)
            assert Steps(module, batch).take(3).cpu_s > 0
            assert len(asked) == passes
            found.append(weights(module))
            # Four steps of Adam, whose first ones move each weight by about the rate of 3e-3.
            assert 0.006 < (found[-1] - start).abs().median() < 0.02
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_a_module_that_logs_without_a_trainer_says_nothing():
    module = distill()
    del module.log
    with warnings.catch_warnings(record=True) as said, without_trainer():
        Steps(module, clips(module.named_students()[""].encoder, 1))
    assert not said


@pytest.mark.parametrize("num", [1, 3])
def test_clips_differ_and_are_the_same_each_time(num):
    encoder = teacher_of_clips().encoder
    batch = clips(encoder, num)
    assert batch["video"].shape == (num, 4, 3, 12, 12)
    assert batch["video"].flatten(1).unique(dim=0).shape[0] == num
    assert torch.equal(batch["video"], clips(encoder, num)["video"])
    assert batch["seed"].unique().numel() == num

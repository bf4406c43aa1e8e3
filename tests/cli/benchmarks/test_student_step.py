"""Oracle: both sides of the suite compute the same step."""

from dataclasses import replace

import pytest
import torch

from ivt2.cli.benchmarks.plain_student import PlainStudent
from ivt2.cli.benchmarks.student_step import (
    StudentStepSuite,
    _batch,
    build,
    our_loss,
    our_optimizer,
    plain_loss,
    plain_optimizer,
    sizes_of,
)
from ivt2.errors import InputError
from ivt2.ops.masking import visible_indices


def sides():
    """A small student of each side with the same weights, and a batch."""
    sizes = replace(sizes_of("tiny")[0], image_size=56, embed_dim=64, depth=3, clip_taps=(0, 2), mae_taps=(1, 2))
    student = build(sizes, compiled=False)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    plain = PlainStudent(sizes)
    plain.load_state_dict(student.state_dict())
    return student, plain, _batch(sizes, 2)


def test_both_students_have_the_same_parameters_and_say_the_same():
    student, plain, batch = sides()
    assert sum(each.numel() for each in student.parameters()) == sum(each.numel() for each in plain.parameters())
    assert {name: each.shape for name, each in student.named_parameters()} == {
        name: each.shape for name, each in plain.named_parameters()
    }
    features = student(batch.video, batch.masked)
    for ours, theirs in zip(features, plain(batch.video, batch.masked), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(visible_indices(batch.masked), visible_indices(batch.masked, batch.num_visible))


def test_both_steps_have_the_same_loss_gradients_and_new_weights():
    student, plain, batch = sides()
    losses = our_loss(student, batch), plain_loss(plain, batch)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    for loss in losses:
        loss.backward()
    theirs = dict(plain.named_parameters())
    for name, ours in student.named_parameters():
        torch.testing.assert_close(ours.grad, theirs[name].grad, rtol=1e-3, atol=1e-6, msg=name)
        theirs[name].grad = ours.grad.clone()
    our_optimizer(student).step()
    plain_optimizer(plain).step()
    for name, ours in student.named_parameters():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("name", "given"), [("sizes", ["large"]), ("dtypes", ["float16"]), ("modes", []), ("modes", ["eager", "fast"])]
)
def test_unknown_choices_are_refused(name, given):
    arguments = {"sizes": ["tiny"], "dtypes": ["float32"], "modes": ["eager"]}
    with pytest.raises(InputError, match=f"{name}="):
        StudentStepSuite(**arguments | {name: given}, drop_path=0.0, pairs=1)

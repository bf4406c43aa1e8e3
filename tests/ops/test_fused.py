"""Oracle: functions with gradients by hand against torch's own, in float64 and half precision."""

import pytest
import torch
from torch.nn import functional

from ivt2.ops.fused import cosine, rms_norm, scaled_add, unit


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rows(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def by_definition(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


CASES = {
    "rms_norm": (lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: by_definition(x, w, 1e-6)),
    "unit": (lambda x, w: unit(x) * w, lambda x, w: functional.normalize(x, dim=-1) * w),
    "scaled_add": (lambda x, w: scaled_add(x, x.sin(), w), lambda x, w: x + x.sin() * w),
    "cosine": (lambda x, w: cosine(x * w, x.cos().detach()), lambda x, w: _cosine(x * w, x.cos().detach())),
}


def _cosine(x, y):
    return functional.cosine_similarity(x, y, dim=-1)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_formula(name):
    ours, judge = CASES[name]
    x, weight = rows(2, 3, 8), rows(8)
    (expected := judge(x, weight)).sin().sum().backward()
    gradients = x.grad, weight.grad
    x.grad = weight.grad = None
    (actual := ours(x, weight)).sin().sum().backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close((x.grad, weight.grad), gradients)


def test_half_precision_is_normalised_in_float32():
    x, weight = rows(4, 64, dtype=torch.bfloat16), rows(64, dtype=torch.bfloat16)
    normed = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(normed, by_definition(x.float(), weight.float(), 1e-6).bfloat16(), rtol=0, atol=0)
    normed.sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_rows_of_zeros_have_no_direction_and_finite_gradients():
    x = torch.zeros(2, 4, requires_grad=True)
    (unit(x).sum() + cosine(x, torch.ones(2, 4)).sum()).backward()
    assert not unit(x).any()
    assert not cosine(x, torch.ones(2, 4)).any()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["rms_norm", "unit", "cosine"])
def test_autocast_changes_nothing(name):
    x, weight = rows(4, 64, dtype=torch.float32), rows(64, dtype=torch.float32)
    (expected := CASES[name][0](x, weight)).sin().sum().backward()
    gradients = x.grad, weight.grad
    x.grad = weight.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        (actual := CASES[name][0](x, weight)).sin().sum().backward()
    torch.testing.assert_close((actual, x.grad, weight.grad), (expected, *gradients), rtol=0, atol=0)


def test_only_the_student_learns():
    student, teacher = rows(3, 4), rows(3, 4)
    cosine(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_sum_has_the_wider_dtype():
    branch, gain = rows(2, 3, 4, dtype=torch.bfloat16), torch.full((4,), 0.3)
    assert scaled_add(branch, branch, gain).dtype == torch.bfloat16
    mixed = scaled_add(rows(2, 3, 4, dtype=torch.float32), branch, gain)
    assert mixed.dtype == torch.float32

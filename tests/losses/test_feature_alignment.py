import pytest
import torch
from torch.nn import functional

from ivt2.losses.feature_alignment import feature_alignment_loss, two_level_alignment_loss

DISTANCES = ("l2", "mse", "smooth_l1")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_features_are_at_distance_zero(distance):
    features = torch.randn(2, 3, 5)
    assert feature_alignment_loss(features, 3 * features, distance=distance).item() == pytest.approx(0, abs=1e-6)


def test_l2_ranges_from_zero_to_four():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert feature_alignment_loss(a, b).item() == 2
    assert feature_alignment_loss(a, -a).item() == 4


def test_l2_is_the_squared_distance_of_unit_vectors():
    a, b = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    apart = functional.normalize(a, dim=-1) - functional.normalize(b, dim=-1)
    torch.testing.assert_close(feature_alignment_loss(a, b), apart.square().sum(-1).mean())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("distance", ["mse", "smooth_l1"])
def test_by_loop(distance, normalize):
    a, b = 2 * torch.randn(3, 4), 2 * torch.randn(3, 4)
    if normalize:
        x, y = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    else:
        x, y = a, b
    gaps = [abs(float(u) - float(v)) for u, v in zip(x.flatten(), y.flatten(), strict=True)]
    each = [g * g if distance == "mse" else (g * g / 2 if g < 1 else g - 0.5) for g in gaps]
    loss = feature_alignment_loss(a, b, distance=distance, normalize=normalize)
    assert loss.item() == pytest.approx(sum(each) / len(each), rel=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_only_the_student_learns(distance):
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    feature_alignment_loss(student, teacher, distance=distance).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("distance", DISTANCES)
def test_nothing_to_align_is_a_zero_with_a_graph(distance):
    student = torch.randn(2, 0, 3, requires_grad=True)
    loss = feature_alignment_loss(student, torch.randn(2, 0, 3), distance=distance)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == student.shape


def test_half_precision_students_are_compared_in_single_precision():
    student, teacher = torch.randn(4, 64).bfloat16(), torch.randn(4, 64)
    assert feature_alignment_loss(student, teacher) == feature_alignment_loss(student.float(), teacher)


@pytest.mark.parametrize("ratios", [(1.0, 1.0), (0.5, 2.0), (1.0, 0.0)])
def test_two_levels_add_up_to_a_scalar(ratios):
    middle = tuple(functional.normalize(torch.randn(2, 3, 4, 5), dim=-1) for _ in range(2))
    final = tuple(functional.normalize(torch.randn(3, 6), dim=-1) for _ in range(2))
    loss = two_level_alignment_loss(middle, final, ratios=ratios)
    expected = ratios[0] * feature_alignment_loss(*middle) + ratios[1] * feature_alignment_loss(*final)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(two_level_alignment_loss(middle, None), feature_alignment_loss(*middle))

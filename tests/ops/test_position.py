"""Position tables against plain loops and recorded facts; the resize routine against its parts."""

import math

import pytest
import torch
from torch.nn import functional

from ivt2.errors import InputError
from ivt2.ops.position import (
    average_frames,
    join_separable,
    resize_position_table,
    sincos_1d,
    sincos_2d,
    sincos_3d,
    sinusoid_interleaved,
)


def slow_code(dim, position):
    half = dim // 2
    angles = [position / 10000 ** (i / half) for i in range(half)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def test_sincos_1d_against_the_formula():
    expected = torch.tensor([slow_code(10, position) for position in range(7)])
    torch.testing.assert_close(sincos_1d(10, 7), expected)


def test_sincos_3d_against_the_formula():
    rows = [[0.0] * 32]
    for t in range(3):
        for y in range(4):
            rows.extend(slow_code(8, t) + slow_code(12, x) + slow_code(12, y) for x in range(4))
    torch.testing.assert_close(sincos_3d(32, 3, 4), torch.tensor(rows))


def test_sincos_2d_is_the_spatial_part_of_the_joint_table():
    torch.testing.assert_close(sincos_2d(24, 4), sincos_3d(32, 2, 4)[17:, 8:])


def test_table_of_the_1b_model_has_the_recorded_values():
    """Values from running the reference: specification of stage 2, section 9."""
    table = sincos_3d(1408, 4, 16)
    assert table.shape == (1025, 1408)
    assert table[0].abs().sum() == 0
    assert table[1, :3].tolist() == [0, 0, 0]
    assert table[257, :3].tolist() == pytest.approx([0.841471, 0.812842, 0.783717], abs=1e-6)
    assert table[2, 352:355].tolist() == pytest.approx([0.841471, 0.822455, 0.803174], abs=1e-6)
    assert table[273, 880:883].tolist() == pytest.approx([0.841471, 0.822455, 0.803174], abs=1e-6)
    assert table.double().abs().sum().item() == pytest.approx(799503.78, abs=0.1)


def test_interleaved_sinusoid_against_the_formula():
    expected = torch.empty(9, 6)
    for p in range(9):
        for i in range(3):
            expected[p, 2 * i] = math.sin(p / 10000 ** (2 * i / 6))
            expected[p, 2 * i + 1] = math.cos(p / 10000 ** (2 * i / 6))
    torch.testing.assert_close(sinusoid_interleaved(6, 9), expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda: sincos_1d(5, 2),
        lambda: sincos_2d(10, 2),
        lambda: sincos_3d(40, 2, 2),
        lambda: sinusoid_interleaved(5, 2),
    ],
)
def test_width_that_does_not_divide_is_refused(build):
    with pytest.raises(InputError, match="width"):
        build()


def test_separable_tables_add_up():
    cls, spatial, temporal = torch.randn(1, 1, 6), torch.randn(1, 4, 6), torch.randn(1, 3, 6)
    joint = join_separable(cls, spatial, temporal)
    assert joint.shape == (1, 13, 6)
    assert torch.equal(joint[:, 0], cls[:, 0])
    for t in range(3):
        for n in range(4):
            assert torch.equal(joint[0, 1 + 4 * t + n], spatial[0, n] + temporal[0, t])


def test_average_frames_keeps_cls():
    table = torch.randn(1, 1 + 3 * 4, 6)
    image = average_frames(table, 3)
    assert image.shape == (1, 5, 6)
    assert torch.equal(image[:, 0], table[:, 0])
    torch.testing.assert_close(image[0, 2], (table[0, 2] + table[0, 6] + table[0, 10]) / 3)


def test_resize_to_the_same_size_changes_nothing():
    table = torch.randn(1, 1 + 4 * 9, 6)
    assert torch.equal(resize_position_table(table, source_frames=4, num_frames=4, grid_size=3), table)


def test_resize_of_time_has_the_recorded_values():
    """Channel 0 of patch 0, four frames to eight: specification of stage 2, section 9."""
    resized = resize_position_table(sincos_3d(16, 4, 2).unsqueeze(0), source_frames=4, num_frames=8, grid_size=2)
    expected = [0, 0.21037, 0.6311, 0.85843, 0.89234, 0.71725, 0.33316, 0.14112]
    assert resized[0, 1::4, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_resize_of_space_acts_on_each_frame_and_keeps_prefix_rows():
    table = torch.randn(1, 2 + 3 * 16, 6)
    resized = resize_position_table(table, source_frames=3, num_frames=3, grid_size=7, num_prefix=2)
    assert resized.shape == (1, 2 + 3 * 49, 6)
    assert torch.equal(resized[:, :2], table[:, :2])
    frame = table[0, 2 + 16 : 2 + 32].T.reshape(1, 6, 4, 4)
    expected = functional.interpolate(frame, size=(7, 7), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized[0, 2 + 49 : 2 + 98], expected.flatten(2)[0].T)


def test_resize_of_joint_table_of_a_separable_sum_is_the_sum_of_the_resized_parts():
    """Both steps are linear, so resizing the parts with the same routine must agree with resizing the whole."""
    cls, spatial, temporal = torch.zeros(1, 1, 6), torch.randn(1, 16, 6), torch.randn(1, 4, 6)
    whole = resize_position_table(join_separable(cls, spatial, temporal), source_frames=4, num_frames=8, grid_size=6)
    space = resize_position_table(spatial, source_frames=1, num_frames=1, grid_size=6, num_prefix=0)
    time = resize_position_table(temporal, source_frames=4, num_frames=8, grid_size=1, num_prefix=0)
    torch.testing.assert_close(whole, join_separable(cls, space, time), atol=1e-5, rtol=1e-5)


def test_resize_keeps_the_dtype_and_computes_in_float32():
    table = torch.randn(1, 1 + 4 * 9, 6).to(torch.bfloat16)
    resized = resize_position_table(table, source_frames=4, num_frames=2, grid_size=5)
    assert resized.dtype == torch.bfloat16
    exact = resize_position_table(table.float(), source_frames=4, num_frames=2, grid_size=5)
    assert torch.equal(resized, exact.to(torch.bfloat16))


@pytest.mark.parametrize(("rows", "frames"), [(1 + 8 * 256, 16 * 7), (1 + 16 * 256, 3), (1, 4)])
def test_rows_that_are_not_square_frames_are_refused(rows, frames):
    with pytest.raises(InputError, match=f"does not hold {frames} square frames"):
        resize_position_table(torch.zeros(1, rows, 4), source_frames=frames, num_frames=8, grid_size=16)


def test_a_wrong_number_of_frames_that_still_divides_is_the_callers_to_know():
    """4 frames of 4 x 4 are also 16 frames of 2 x 2: nothing in the table tells them apart."""
    table = torch.zeros(1, 1 + 64, 4)
    assert resize_position_table(table, source_frames=16, num_frames=16, grid_size=2).shape == (1, 65, 4)

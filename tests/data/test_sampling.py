import numpy as np
import pytest

from ivt2.data import sampling

LENGTHS = [1, 2, 3, 7, 8, 9, 30, 100, 301]


@pytest.mark.parametrize(
    ("length", "num_frames", "frames"),
    [
        (100, 8, [5, 18, 30, 43, 55, 68, 80, 93]),
        (899, 8, [55, 167, 280, 392, 504, 617, 729, 842]),
        (7, 8, [0, 1, 2, 3, 4, 5, 6, 6]),
        (3, 4, [0, 1, 2, 2]),
        (1, 4, [0, 0, 0, 0]),
    ],
)
def test_middle_closed_form(length, num_frames, frames):
    assert sampling.middle(length, num_frames) == frames


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("num_frames", [1, 4, 8])
def test_every_sampler_stays_inside_and_in_order(length, num_frames):
    generator = np.random.default_rng(length)
    clips = [
        sampling.middle(length, num_frames),
        sampling.segment_offset(length, num_frames, 3),
        sampling.random(length, num_frames, generator),
        sampling.random(length, num_frames, generator, exclude_last=True),
        sampling.uniform_random(length, num_frames, generator),
        sampling.segment_centers(length, num_frames),
        sampling.segment_centers(length, num_frames, whole=True),
        sampling.dense(length, num_frames, 4),
        sampling.dense_random(length, num_frames, 4, generator),
        *[sampling.uniform(length, num_frames, view=view, num_views=3) for view in range(3)],
        *[sampling.segments(length, num_frames, view=view, num_views=3) for view in range(3)],
        *[sampling.dense_views(length, num_frames, 4, view=view, num_views=3) for view in range(3)],
        sampling.dense_views(length, num_frames, 4, view=0, num_views=1),
    ]
    for frames in clips:
        assert len(frames) == num_frames
        assert frames == sorted(frames)
        assert frames[0] >= 0
        assert frames[-1] < length
        assert all(type(frame) is int for frame in frames)


def test_random_reaches_every_frame_and_the_reference_misses_each_last_one():
    generator = np.random.default_rng(0)
    reached = {frame for _ in range(300) for frame in sampling.random(12, 3, generator)}
    assert reached == set(range(12))
    reached = {frame for _ in range(300) for frame in sampling.random(12, 3, generator, exclude_last=True)}
    assert reached == set(range(12)) - {3, 7, 11}


def test_random_is_uniform_within_a_segment():
    generator = np.random.default_rng(0)
    counts = np.bincount([sampling.random(10, 1, generator)[0] for _ in range(5000)], minlength=10)
    assert abs(counts / 500 - 1).max() < 0.2


def test_reference_draws_a_subset_where_a_segment_has_one_frame():
    clips = {tuple(sampling.random(7, 4, np.random.default_rng(seed), exclude_last=True)) for seed in range(300)}
    assert len(clips) == 35  # all subsets of 4 out of 7


def test_same_generator_state_gives_same_frames():
    first, second = (sampling.random(100, 8, np.random.default_rng(3)) for _ in range(2))
    assert first == second


def test_rate_closed_form():
    assert sampling.at_rate(100, 25.0, 1.0) == [12, 38, 62, 88]
    assert sampling.at_rate(300, 30.0, 0.5, max_num_frames=3) == [30, 90, 150]


def test_rate_of_a_short_video_gives_its_middle_unless_empty_is_allowed():
    assert sampling.at_rate(9, 25.0, 0.5) == [4]
    assert sampling.at_rate(9, 25.0, 0.5, allow_empty=True) == []


def test_offset_stays_in_its_segment_unless_overrun():
    assert sampling.segment_offset(8, 4, 5) == [1, 3, 5, 7]
    assert sampling.segment_offset(8, 4, 5, overrun=True) == [5, 7, 9, 11]


def test_uniform_views_published_example():
    assert sampling.uniform(250, 8) == [15, 46, 77, 108, 139, 171, 202, 233]
    assert sampling.uniform(250, 8, view=0, num_views=4)[0] == 6
    assert sampling.uniform(250, 8, view=3, num_views=4)[-1] == 242
    assert sampling.uniform(30, 4, start=100) == [frame + 100 for frame in sampling.uniform(30, 4)]


def test_uniform_random_reaches_both_ends():
    generator = np.random.default_rng(0)
    clips = [sampling.uniform_random(9, 2, generator) for _ in range(200)]
    assert {clip[0] for clip in clips} == {0, 1, 2, 3, 4}
    assert {clip[1] for clip in clips} == {4, 5, 6, 7, 8}


def test_dense_window_is_centred_unless_overrun():
    frames = sampling.dense(300, 4, 4)
    assert abs(frames[0] - (299 - frames[-1])) <= 1
    assert sampling.dense(16, 4, 2, overrun=True) == [-4, -1, 1, 3]


def test_dense_random_window_reaches_both_ends():
    generator = np.random.default_rng(0)
    clips = [sampling.dense_random(20, 4, 4, generator) for _ in range(200)]
    assert min(clip[0] for clip in clips) == 0
    assert max(clip[-1] for clip in clips) == 19


def test_dense_views_cover_the_video():
    assert sampling.dense_views(100, 4, 4, view=0, num_views=3)[0] == 0
    assert sampling.dense_views(100, 4, 4, view=2, num_views=3) == [84, 88, 92, 96]
    assert sampling.dense_views(100, 4, 4, view=0, num_views=1)[0] == 42


def test_strided_repeats_the_last_frame():
    assert sampling.strided(10, 4, 3, [0, 5]) == [0, 3, 6, 9, 5, 8, 8, 8]
    assert sampling.strided(10, 4, 3, [0], exclude_last=True) == [0, 3, 6, 6]


def test_segment_starts_leave_room_for_the_run():
    for seed in range(50):
        starts = sampling.segment_starts(40, 4, 8, np.random.default_rng(seed))
        assert starts == sorted(starts)
        assert starts[-1] + 8 <= 40
    assert sampling.segment_starts(5, 8, 1, np.random.default_rng(0)) == [0] * 8


def test_nothing_to_sample_is_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        sampling.middle(0, 4)
    with pytest.raises(ValueError, match="at least one frame"):
        sampling.uniform(10, 0)
    with pytest.raises(ValueError, match="no index below"):
        sampling.repeat_last([5], 5)

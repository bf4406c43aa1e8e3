"""Frame indices and test crops against the reference's tables; rows where the reference raises are named."""

import random
import warnings

import numpy as np

from ivt2.data import sampling, transforms
from tests.golden.case import Case


class Reference:
    """Python's `random` and numpy's legacy generator, as the reference seeded them."""

    def __init__(self, seed: int) -> None:
        self.python = random.Random(seed)
        self.numpy = np.random.RandomState(seed)

    def integers(self, low, high):
        return self.python.choice(range(low, high))

    def permutation(self, x):
        return self.numpy.permutation(x)


class Legacy(Reference):
    def integers(self, low, high):
        return self.numpy.randint(low, high)


def all_views(function, length, num_frames, num_views):
    return sorted(i for view in range(num_views) for i in function(length, num_frames, view=view, num_views=num_views))


def video_views(length, num_frames, num_views):
    """Two views whatever is asked for, filled up with the last segment's start: the reference's reader of videos."""
    last = sampling.segments(length, num_frames)[-1]
    return sorted(all_views(sampling.segments, length, num_frames, 2) + [last] * (num_frames * (num_views - 2)))


def crop(row):
    _, height, width, short, num_views, view = row
    top, left = transforms.view_corner(height, width, short, view=view, num_views=num_views)
    return [top, left, short, short]


TABLES = {
    "stage2_middle": lambda n, length: sampling.middle(length, n),
    "stage2_middle_fix_start": lambda n, length, offset: sampling.segment_offset(length, n, offset, overrun=True),
    "stage2_fps": lambda rate, length, fps, most: sampling.at_rate(
        length, fps, rate, max_num_frames=most if most > 0 else None, allow_empty=True
    ),
    "stage2_get_index_num_frames_num_segments": sampling.uniform,
    "stage2_rand_seed0_python_and_numpy": lambda n, length: sampling.random(length, n, Reference(0), exclude_last=True),
    "sparse_validation_clip0": lambda n, length: sampling.uniform(length, n),
    "sparse_test": lambda n, length, views, view: sampling.uniform(length, n, view=view, num_views=views),
    "anet_start_offset_test": lambda n, length, start, views, view: sampling.uniform(
        length, n, view=view, num_views=views, start=start
    ),
    "dense_validation": lambda n, length, stride: sampling.dense(length, n, stride, overrun=True),
    "dense_test": lambda n, length, stride, views, view: sampling.dense_views(
        length, n, stride, view=view, num_views=views
    ),
    "ssv2_video_validation": lambda n, length: sampling.segment_centers(length, n),
    "ssv2_video_test_all_indices": lambda n, length, views: video_views(length, n, views),
    "rawframe_validation_0based": lambda n, length: sampling.segment_centers(length, n, whole=True),
    "rawframe_test_all_indices_0based": lambda n, length, views: all_views(sampling.segments, length, n, views),
    "spatial_crop_rows_h_w_short_ncrop_split__y0_x0_height_width": lambda *row: crop(row),
    "tsn_frame_ids_dur_nseg_len_step_offsets": lambda length, segments, n, stride, starts: sampling.strided(
        length, n, stride, [start - 1 for start in starts], exclude_last=True
    ),
    "tsn_train_offsets_dur_nseg_len_step_npseed": lambda length, segments, n, stride, seed: [
        start + 1 for start in sampling.segment_starts(length, segments, n * stride, Legacy(seed))
    ],
}


def check(case: Case) -> None:
    skipped, compared = {}, 0
    for table, rows in case.json.items():
        for *arguments, expected in rows:
            if isinstance(expected, str):
                skipped[table] = skipped.get(table, 0) + 1
                continue
            actual = TABLES[table](*arguments)
            assert list(actual) == expected, f"{table}{arguments}: {actual}, recorded {expected}"
            compared += 1
    assert compared, "no row was compared"
    for table, count in skipped.items():
        warnings.warn(f"{case.name}: {count} rows of {table} not covered: the reference raises there", stacklevel=2)

"""Which frames of a video make a clip: pure functions from a length to frame indices.

``length`` is the number of frames of the video, ``num_frames`` the number wanted; every function returns exactly
``num_frames`` indices in increasing order (``at_rate`` as many as the duration holds). Videos shorter than the clip
repeat frames.
Deviations of the reference code are options, off by default. Views are counted from 0.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np


class Draw(Protocol):
    """The part of ``numpy.random.Generator`` that random sampling needs."""

    def integers(self, low: int, high: int, /) -> "int | np.integer":
        """Return an integer in [low, high)."""

    def permutation(self, x: int, /) -> "np.ndarray | Sequence[int]":
        """Return the numbers below ``x`` in random order."""


def _check(length: int, num_frames: int) -> None:
    if length < 1 or num_frames < 1:
        raise ValueError(f"sampling needs at least one frame: length {length}, num_frames {num_frames}")


def _segment_edges(length: int, num_frames: int) -> list[int]:
    """Borders of equal segments, one frame each at least; segment i is [edge i, edge i + 1)."""
    _check(length, num_frames)
    return [int(edge) for edge in np.linspace(0, length, min(num_frames, length) + 1)]


def _pad(frames: list[int], num_frames: int) -> list[int]:
    return frames + [frames[-1]] * (num_frames - len(frames))


def middle(length: int, num_frames: int) -> list[int]:
    """Take the middle frame of each of ``num_frames`` equal segments.

    Source: stage 2 evaluation, sampling type ``middle``.
    """
    edges = _segment_edges(length, num_frames)
    return _pad([(low + high - 1) // 2 for low, high in pairwise(edges)], num_frames)


def segment_offset(length: int, num_frames: int, offset: int, *, overrun: bool = False) -> list[int]:
    """Take the frame that stands ``offset`` frames after the start of each segment.

    Args:
        length: Frames of the video.
        num_frames: Frames wanted.
        offset: Distance from the start of a segment, in frames.
        overrun: Keep indices that leave their segment, or even the video, as the reference's ``fix_start`` does;
            otherwise the last frame of the segment is taken.
    """
    edges = _segment_edges(length, num_frames)
    frames = [low + offset if overrun else min(low + offset, high - 1) for low, high in pairwise(edges)]
    return _pad(frames, num_frames)


def random(length: int, num_frames: int, generator: Draw, *, exclude_last: bool = False) -> list[int]:
    """Draw one frame of each of ``num_frames`` equal segments.

    Args:
        length: Frames of the video.
        num_frames: Frames wanted.
        generator: Source of the draws.
        exclude_last: Never draw the last frame of a segment and, where a segment has but one, take a sorted random
            subset of all frames instead, as stage 2 of the reference does (sampling type ``rand``).
    """
    edges = _segment_edges(length, num_frames)
    lows, highs = edges[:-1], [edge - exclude_last for edge in edges[1:]]
    if any(low >= high for low, high in zip(lows, highs, strict=True)):
        order = generator.permutation(length)
        return _pad(sorted(int(frame) for frame in order[: len(lows)]), num_frames)
    return _pad([int(generator.integers(low, high)) for low, high in zip(lows, highs, strict=True)], num_frames)


def at_rate(
    length: int, video_fps: float, rate_hz: float, *, max_num_frames: int | None = None, allow_empty: bool = False
) -> list[int]:
    """Take frames at a fixed rate: those nearest to (k + 1/2) / rate seconds.

    Args:
        length: Frames of the video.
        video_fps: Frames per second of the video.
        rate_hz: Frames per second wanted.
        max_num_frames: Keep the first so many only.
        allow_empty: Return nothing for a video shorter than half a period, as the reference's ``fpsX`` does;
            otherwise its middle frame.
    """
    _check(length, 1)
    period_s = 1.0 / rate_hz
    times_s = np.arange(period_s / 2, length / video_fps + period_s / 2, period_s)
    frames = [int(frame) for frame in np.around(times_s * video_fps) if frame < length]
    if not frames and not allow_empty:
        return middle(length, 1)
    return frames[:max_num_frames]


def uniform(length: int, num_frames: int, *, view: int = 0, num_views: int = 1, start: int = 0) -> list[int]:
    """Take frames one step apart, step = (length - 1) / num_frames; views shift them by equal parts of a step.

    ``frame_i = start + round(step * i) + floor(step * (view + 1) / (num_views + 1))``

    Args:
        length: Frames of the video, or of the part of it that begins at ``start``.
        num_frames: Frames wanted.
        view: Which of the shifted clips.
        num_views: How many shifted clips there are.
        start: Added to every index.

    Source: "sparse" sampling of stage 1 fine-tuning; one view is stage 2's clip reader.
    """
    _check(length, num_frames)
    step = (length - 1) / num_frames
    shift = int(step / (num_views + 1) * (view + 1))
    return [start + round(step * i) + shift for i in range(num_frames)]


def uniform_random(length: int, num_frames: int, generator: Draw) -> list[int]:
    """Draw one frame of each step of ``uniform``, both ends included."""
    _check(length, num_frames)
    step = (length - 1) / num_frames
    edges = [round(step * i) for i in range(num_frames + 1)]
    drawn = [int(generator.integers(low, high + 1)) for low, high in pairwise(edges)]
    return [min(frame, length - 1) for frame in drawn]


def segments(length: int, num_frames: int, *, view: int = 0, num_views: int = 1) -> list[int]:
    """Take ``floor(tick * i + tick * view / num_views)`` with tick = length / num_frames.

    Source: test views of Something-Something and HMDB51 in stage 1.
    """
    _check(length, num_frames)
    tick = length / num_frames
    return [int(view * tick / num_views + tick * i) for i in range(num_frames)]


def segment_centers(length: int, num_frames: int, *, whole: bool = False) -> list[int]:
    """Take the centre of each tick of ``segments``.

    Args:
        length: Frames of the video.
        num_frames: Frames wanted.
        whole: Use segments of floor(length / num_frames) frames, so that the end of the video is never seen, and repeat
            the first frame of a short video: the reference's reader of frame folders.
    """
    _check(length, num_frames)
    if not whole:
        tick = length / num_frames
        return [int(tick / 2 + tick * i) for i in range(num_frames)]
    if length < num_frames:
        return [0] * (num_frames - length) + list(range(length))
    size = length // num_frames
    return [i * size + size // 2 for i in range(num_frames)]


def dense(length: int, num_frames: int, stride: int, *, start: int | None = None, overrun: bool = False) -> list[int]:
    """Spread the clip evenly over a window of ``num_frames * stride`` frames.

    Args:
        length: Frames of the video.
        num_frames: Frames wanted.
        stride: Window length per wanted frame.
        start: First frame of the window; the centred window if None. Without effect where the window does not fit.
        overrun: Let the window *end* at (length - window) // 2, as the reference's validation does: it lies in the
            first half of the video, and before its beginning for videos shorter than three windows.
    """
    _check(length, num_frames)
    window = num_frames * stride
    if length <= window:
        spread = np.linspace(0, length, length // stride).tolist()
        return [min(int(frame), length - 1) for frame in spread + [length] * (num_frames - len(spread))]
    if start is None:
        start = (length - window) // 2 - (window if overrun else 0)
    return [int(min(frame, start + window - 1)) for frame in np.linspace(start, start + window, num_frames)]


def dense_random(length: int, num_frames: int, stride: int, generator: Draw) -> list[int]:
    """Place the window of ``dense`` at random."""
    spare = length - num_frames * stride
    return dense(length, num_frames, stride, start=int(generator.integers(0, spare + 1)) if spare > 0 else None)


def dense_views(length: int, num_frames: int, stride: int, *, view: int, num_views: int) -> list[int]:
    """Take every ``stride``-th frame of one of ``num_views`` windows that are spread evenly over the video.

    Past the end the last frame on the window's grid repeats. One view stands in the middle.
    """
    _check(length, num_frames)
    spare = max(length - num_frames * stride, 0)
    start = int(spare / (num_views - 1) * view) if num_views > 1 else spare // 2
    return repeat_last([start + stride * i for i in range(num_frames)], length)


def repeat_last(frames: Sequence[int], length: int) -> list[int]:
    """Replace every index at or past ``length`` by the last one before it."""
    inside = [frame for frame in frames if frame < length]
    if not inside:
        raise ValueError(f"no index below {length}")
    return [frame if frame < length else inside[-1] for frame in frames]


def strided(
    length: int, num_frames: int, stride: int, starts: Sequence[int], *, exclude_last: bool = False
) -> list[int]:
    """Take ``num_frames`` frames, ``stride`` apart, from each of ``starts``; past the end the last one repeats.

    Args:
        length: Frames of the video.
        num_frames: Frames from each start.
        stride: Distance of neighbours, in frames.
        starts: First frames.
        exclude_last: Stop one frame before the end, as the reference's pretraining reader does.

    Source: temporal segment sampling (TSN), used by stage 1 pretraining.
    """
    _check(length, num_frames)
    last = length - 1 - exclude_last
    return [start + min(i, max(last - start, 0) // stride) * stride for start in starts for i in range(num_frames)]


def segment_starts(length: int, num_segments: int, span: int, generator: Draw) -> list[int]:
    """Draw the starts of ``num_segments`` runs of ``span`` frames, one in each equal part of the possible starts.

    With fewer possible starts than segments they are drawn freely and sorted; with none every run starts at 0.

    Source: temporal segment sampling (TSN), used by stage 1 pretraining.
    """
    _check(length, num_segments)
    possible = length - span + 1
    size = math.floor(possible / num_segments)
    if size > 0:
        return [i * size + int(generator.integers(0, size)) for i in range(num_segments)]
    if length > max(num_segments, span):
        return sorted(int(generator.integers(0, possible)) for _ in range(num_segments))
    return [0] * num_segments

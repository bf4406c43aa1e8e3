"""Exact: what a caption says is what the pixels show and the sound plays."""

import hashlib
import itertools

import numpy as np
import pytest

from ivt2.data.synthetic import FPS, MOTIONS, RELATIONS, SHAPES, SIZES, TONES, Combination, Scene
from ivt2.data.synthetic_render import (
    RADIUS,
    RGB,
    SAMPLE_RATE_HZ,
    SECOND_RADIUS,
    TONE_HZ,
    first_place,
    render,
    second_place,
    waveform,
)

WORDS = Combination("red", "square", "big", "left", "blue", "cross", "above")


def scene(**changed) -> Scene:
    fields = {
        "key": "train_000000",
        "combination": WORDS._replace(**{name: changed.pop(name) for name in list(changed) if name in WORDS._fields}),
        "num_frames": 20,
        "start_frame": 5,
        "end_frame": 15,
        "travel_ratio": 0.5,
        "offset": (0.0, 0.0),
        "background": (30, 25, 35),
        "brightness": 1.0,
        "variant": 0,
    }
    return Scene(**{**fields, **changed})


def where(frame, colour) -> np.ndarray:
    """Pixels close to a colour."""
    return np.abs(frame.astype(int) - np.array(RGB[colour])).max(-1) < 40


def middle(found) -> tuple[float, float]:
    """Mean x and y as fractions of the side."""
    rows, columns = np.nonzero(found)
    return (columns.mean() + 0.5) / found.shape[1], (rows.mean() + 0.5) / found.shape[0]


@pytest.mark.parametrize("image_size", [48, 64])
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("motion", MOTIONS)
def test_first_object_does_what_its_motion_says(motion, relation, image_size):
    video = render(scene(motion=motion, relation=relation), image_size)
    (x0, y0), (x1, y1) = (middle(where(frame, "red")) for frame in (video[0], video[-1]))
    area0, area1 = (where(frame, "red").sum() for frame in (video[0], video[-1]))
    heading = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
    for moved, direction in ((x1 - x0, heading[0]), (y1 - y0, heading[1])):
        assert moved * direction > 0.2 if direction else abs(moved) < 0.02
    ratio = {"grow": 3.8, "shrink": 1 / 3.8}.get(motion, 1.0)  # (1 + 0.35) / (1 - 0.35) squared is 4.3
    assert area1 / area0 == pytest.approx(ratio, rel=0.4)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("motion", MOTIONS)
def test_objects_stand_as_the_relation_says_and_never_touch(motion, relation):
    video = render(scene(motion=motion, relation=relation, travel_ratio=1.0, offset=(1.0, -1.0)), 64)
    for frame in video:
        red, blue = where(frame, "red"), where(frame, "blue")
        (x0, y0), (x1, y1) = middle(red), middle(blue)
        apart = {"above": y1 - y0, "below": y0 - y1, "left of": x1 - x0, "right of": x0 - x1}[relation]
        assert apart > 0.3
        axis = 0 if relation in {"above", "below"} else 1
        spans = [np.nonzero(found.any(axis=1 - axis))[0] for found in (red, blue)]
        low, high = sorted(spans, key=lambda span: span.mean())
        assert low.max() < high.min()


def test_second_object_and_ground_rest_all_the_time():
    video = render(scene(motion="right"), 64)
    blue = where(video[0], "blue")
    assert blue.sum() > 60
    assert all((where(frame, "blue") == blue).all() for frame in video)
    assert (video[:, 0, 0] == [30, 25, 35]).all()


@pytest.mark.parametrize("motion", MOTIONS)
def test_object_moves_within_the_event_and_only_there(motion):
    shown = scene(motion=motion)
    video = render(shown, 64)
    changed = np.flatnonzero((video[1:] != video[:-1]).any(axis=(1, 2, 3)))
    assert changed.tolist() == list(range(shown.start_frame, shown.end_frame))


@pytest.mark.parametrize("colour", sorted(RGB))
def test_colours_are_painted_and_lie_far_apart(colour):
    other = "red" if colour != "red" else "green"
    frame = render(scene(colour=colour, second_colour=other), 64)[0]
    centre = first_place(scene(), 0)
    assert tuple(frame[int(centre.y * 64), int(centre.x * 64)]) == RGB[colour]
    distances = [np.abs(np.subtract(RGB[colour], RGB[name])).sum() for name in RGB if name != colour]
    assert min(distances) > 150
    dimmed = render(scene(colour=colour, second_colour=other, brightness=0.9), 64)[0]
    assert dimmed[int(centre.y * 64), int(centre.x * 64)] == pytest.approx(np.multiply(RGB[colour], 0.9), abs=0.51)


def test_background_is_darker_than_every_object():
    video = render(scene(background=(52, 52, 52), colour="blue", second_colour="red"), 64)
    assert video[0, 0, 0].max() < 60
    assert min(max(colour) for colour in RGB.values()) * 0.88 > 170


def test_big_covers_twice_as_much_as_small():
    areas = {size: where(render(scene(size=size), 64)[0], "red").sum() for size in SIZES}
    assert areas["big"] > 2 * areas["small"]
    assert RADIUS["small"] < SECOND_RADIUS < RADIUS["big"]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_drawn_at_every_point_they_cover(shape):
    shown = scene(shape=shape, size="big")
    frame = render(shown, 64)[0]
    place = first_place(shown, 0)
    rows, columns = (np.indices((64, 64)) + 0.5) / 64
    dx, dy = (columns - place.x) / place.radius, (rows - place.y) / place.radius
    expected = {
        "ring": (np.hypot(dx, dy) > 0.52) & (np.hypot(dx, dy) < 1.05),
        "square": np.maximum(abs(dx), abs(dy)) < 0.9,
        "triangle": (dy < 0.85) & (abs(dx) < 0.6 * (dy + 1.15)),
        "cross": (np.minimum(abs(dx), abs(dy)) < 0.36) & (np.maximum(abs(dx), abs(dy)) < 1.1),
    }[shape]
    found = where(frame, "red")
    assert (found & expected).sum() > 0.75 * (found | expected).sum()


def test_shapes_look_different():
    masks = {shape: where(render(scene(shape=shape, size="small"), 64)[0], "red") for shape in SHAPES}
    for first in SHAPES:
        for second in SHAPES:
            differing = (masks[first] ^ masks[second]).sum()
            assert (differing > 0.25 * masks[first].sum()) == (first != second)


def test_pixels_are_the_same_on_every_machine():
    # recorded: integers and correctly rounded sums only
    video = render(scene(shape="ring", motion="grow", second_shape="triangle", offset=(0.3, -0.7)), 64)
    assert video.dtype == np.uint8
    assert video.shape == (20, 64, 64, 3)
    assert hashlib.sha256(video.tobytes()).hexdigest()[:16] == "bccab8984dd70678"


def test_places_stay_within_the_frame():
    for motion in MOTIONS:
        for relation in RELATIONS:
            shown = scene(motion=motion, relation=relation, travel_ratio=1.0, offset=(1.0, 1.0))
            for x, y, radius in (first_place(shown, 0), first_place(shown, 19), second_place(shown)):
                assert min(x, y) - radius >= 0
                assert max(x, y) + radius <= 1


@pytest.mark.parametrize("motion", MOTIONS)
def test_tone_has_the_frequency_that_the_caption_names(motion):
    shown = scene(motion=motion)
    samples = waveform(shown)
    assert samples.dtype == np.int16
    assert len(samples) == shown.duration_s * SAMPLE_RATE_HZ
    event = samples[int(shown.start_s * SAMPLE_RATE_HZ) : int(shown.end_s * SAMPLE_RATE_HZ)]
    spectrum = np.abs(np.fft.rfft(event * np.hanning(len(event))))
    assert spectrum.argmax() * SAMPLE_RATE_HZ / len(event) == pytest.approx(TONE_HZ[shown.tone], abs=2)
    assert {"up": "high", "shrink": "high", "down": "low", "grow": "low"}.get(motion, "middle") == shown.tone


def test_tone_sounds_during_the_event_only():
    shown = scene()
    per_frame = SAMPLE_RATE_HZ // FPS
    loud = np.abs(waveform(shown).astype(int)).reshape(shown.num_frames, per_frame).max(1)
    assert (loud > 0).tolist() == [shown.start_frame <= i < shown.end_frame for i in range(shown.num_frames)]


def test_tones_lie_an_octave_apart_or_more():
    assert TONE_HZ == {"low": 250, "middle": 800, "high": 2000}
    hz = [TONE_HZ[tone] for tone in TONES]
    assert all(later >= 2 * earlier for earlier, later in itertools.pairwise(hz))


def test_a_big_object_is_louder_and_shapes_differ_in_timbre():
    power = {size: np.square(waveform(scene(size=size)).astype(float)).sum() for size in SIZES}
    assert power["big"] == pytest.approx(4 * power["small"], rel=0.01)
    sounds = {waveform(scene(shape=shape)).tobytes() for shape in SHAPES}
    assert len(sounds) == len(SHAPES)


def test_samples_are_the_same_on_every_machine():
    # recorded; no entry of a table may lie so near to a half that another sine would round it differently
    samples = waveform(scene(shape="cross", motion="up"))
    assert hashlib.sha256(samples.tobytes()).hexdigest()[:16] == "9fd617ea720a969a"

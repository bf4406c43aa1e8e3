"""Pixels and sound of the embedded dataset: pure functions of a scene, exact on every machine.

Lengths are fractions of the frame's side, x to the right and y down. Only additions, multiplications, comparisons and
integer arithmetic are used, so that no mathematics library can round differently.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ivt2.data.synthetic import FPS, Colour, Motion, Relation, Scene, Shape, Size, Tone

SAMPLE_RATE_HZ = 16_000

RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (240, 30, 30),
    "green": (30, 200, 50),
    "blue": (40, 80, 255),
    "yellow": (250, 225, 30),
    "purple": (215, 50, 230),
    "white": (250, 250, 250),
}
RADIUS: dict[Size, float] = {"small": 0.11, "big": 0.17}
SECOND_RADIUS = 0.125
TONE_HZ: dict[Tone, int] = {"low": 250, "middle": 800, "high": 2000}
HARMONICS: dict[Shape, tuple[float, ...]] = {
    "ring": (1.0,),
    "square": (1.0, 0.0, 0.33),
    "triangle": (1.0, 0.5),
    "cross": (1.0, 0.5, 0.33),
}
"""Weights of the multiples of the tone's frequency: the timbre tells the shape."""
AMPLITUDE: dict[Size, int] = {"small": 4096, "big": 8192}
"""Peak-like amplitude of 16-bit samples: a big object is louder."""

_DIRECTION: dict[Relation | Motion, tuple[int, int]] = {
    "above": (0, -1),
    "below": (0, 1),
    "left of": (-1, 0),
    "right of": (1, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "grow": (0, 0),
    "shrink": (0, 0),
}
_GRID = 4
PERIOD = 320
"""Entries of the table of one period: every tone is a multiple of 16000 / 320 = 50 Hz, so that steps are whole."""
_RAMP_SAMPLES = 160


class Place(NamedTuple):
    """Centre and radius of an object."""

    x: float
    y: float
    radius: float


def first_place(scene: Scene, frame: int) -> Place:
    """Return where the first object is: at rest until the event starts, then moving evenly, then at rest."""
    words = scene.combination
    progress = (frame - scene.start_frame) / (scene.end_frame - scene.start_frame)
    swing = min(max(progress, 0.0), 1.0) - 0.5
    side, heading = _DIRECTION[words.relation], _DIRECTION[words.motion]
    along = heading[0] * side[0] + heading[1] * side[1] != 0
    travel = (0.22 + 0.05 * scene.travel_ratio) if along else (0.28 + 0.14 * scene.travel_ratio)
    across = 0.05 * scene.offset[0]
    x = 0.5 + 0.17 * side[0] + across * abs(side[1]) + travel * swing * heading[0]
    y = 0.5 + 0.17 * side[1] + across * abs(side[0]) + travel * swing * heading[1]
    change = {"grow": 1.0, "shrink": -1.0}.get(words.motion, 0.0) * (0.6 + 0.2 * scene.travel_ratio)
    return Place(x, y, RADIUS[words.size] * (1.0 + change * swing))


def second_place(scene: Scene) -> Place:
    """Return where the second object stays."""
    side = _DIRECTION[scene.combination.relation]
    across = 0.16 * scene.offset[1]
    x = 0.5 - 0.33 * side[0] + across * abs(side[1])
    y = 0.5 - 0.33 * side[1] + across * abs(side[0])
    return Place(x, y, SECOND_RADIUS)


def render(scene: Scene, image_size: int) -> NDArray[np.uint8]:
    """Draw every frame.

    Args:
        scene: what to show.
        image_size: side of the square frame in pixels.

    Returns:
        Pixels [T, H, W, 3] in RGB, the order that encoders take.
    """
    words = scene.combination
    canvas = np.empty((image_size, image_size, 3), dtype=np.uint8)
    canvas[:] = scene.background
    _draw(canvas, words.second_shape, second_place(scene), _lit(words.second_colour, scene.brightness))
    video = np.repeat(canvas[None], scene.num_frames, axis=0)
    colour = _lit(words.colour, scene.brightness)
    for frame in range(scene.start_frame, scene.end_frame + 1):
        _draw(video[frame], words.shape, first_place(scene, frame), colour)
    video[: scene.start_frame] = video[scene.start_frame]
    video[scene.end_frame :] = video[scene.end_frame]
    return video


def waveform(scene: Scene) -> NDArray[np.int16]:
    """Return the sound: silence, and a tone from the first to the last moment of the event.

    The motion sets the pitch, the first object's shape the timbre and its size the loudness.

    Returns:
        16-bit mono samples at ``SAMPLE_RATE_HZ``, as long as the clip.
    """
    words = scene.combination
    hz, weights = TONE_HZ[scene.tone], HARMONICS[words.shape]
    table = wave_table(AMPLITUDE[words.size], weights)
    per_frame = SAMPLE_RATE_HZ // FPS
    start, end = scene.start_frame * per_frame, scene.end_frame * per_frame
    steps = np.arange(end - start)
    samples = np.zeros(scene.num_frames * per_frame, dtype=np.int16)
    samples[start:end] = ramped(table[steps * (hz * PERIOD // SAMPLE_RATE_HZ) % PERIOD])
    return samples


def wave_table(amplitude: int, weights: tuple[float, ...]) -> NDArray[np.int64]:
    """Return one period of a timbre, ``PERIOD`` samples of it.

    Args:
        amplitude: of the first harmonic, for 16-bit samples.
        weights: of the harmonics.
    """
    return np.array([round(amplitude * _period(step / PERIOD, weights)) for step in range(PERIOD)])


def ramped(samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a tone that starts and ends within 10 ms of silence, so that it does not click."""
    steps = np.arange(len(samples))
    ramp = np.minimum(np.minimum(steps, steps[::-1]), _RAMP_SAMPLES)
    faded: NDArray[np.int64] = samples * ramp // _RAMP_SAMPLES
    return faded


def _period(phase: float, weights: tuple[float, ...]) -> float:
    """Value of the timbre at a phase in [0, 1)."""
    return sum(weight * math.sin(2 * math.pi * multiple * phase) for multiple, weight in enumerate(weights, 1))


def _lit(colour: Colour, brightness: float) -> NDArray[np.int64]:
    """The colour as the scene lights it."""
    return np.array([round(value * brightness) for value in RGB[colour]])


def _draw(canvas: NDArray[np.uint8], shape: Shape, place: Place, colour: NDArray[np.int64]) -> None:
    """Paint one shape into the canvas, with edges smoothed over a grid of 4 by 4 points in every pixel."""
    side = canvas.shape[0]
    reach = 1.25 * place.radius
    left, right = (min(max(math.floor((place.x + sign * reach) * side) + (sign > 0), 0), side) for sign in (-1, 1))
    top, bottom = (min(max(math.floor((place.y + sign * reach) * side) + (sign > 0), 0), side) for sign in (-1, 1))
    dx = ((np.arange(left * _GRID, right * _GRID) + 0.5) / (_GRID * side) - place.x) / place.radius
    dy = ((np.arange(top * _GRID, bottom * _GRID) + 0.5) / (_GRID * side) - place.y) / place.radius
    inside = _inside(shape, dx[None, :], dy[:, None])
    covered = inside.reshape(bottom - top, _GRID, right - left, _GRID).sum(axis=(1, 3))[..., None]
    patch = canvas[top:bottom, left:right]
    whole = _GRID * _GRID
    patch[:] = (patch * (whole - covered) + colour * covered + whole // 2) // whole


def _inside(shape: Shape, dx: NDArray[np.float64], dy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points, in radii from the centre, lie within the shape; the shapes have similar areas."""
    if shape == "ring":
        square_distance = dx * dx + dy * dy
        return (square_distance >= 0.27) & (square_distance <= 1.1)
    if shape == "square":
        return (np.abs(dx) <= 0.9) & (np.abs(dy) <= 0.9)
    if shape == "triangle":
        return (dy <= 0.85) & (np.abs(dx) <= (dy + 1.15) * 0.6)
    return ((np.abs(dx) <= 0.36) & (np.abs(dy) <= 1.1)) | ((np.abs(dy) <= 0.36) & (np.abs(dx) <= 1.1))

"""Sounds of the embedded datasets: four tones one after the other, and the captions that say which.

A tone is low, middle or high, or it rises or falls. The four kinds make a combination, whose split is decided as that
of a scene's words; timbre, loudness and the exact times are free details that no caption names. Everything is a pure
function of (split, seed, index), in integer arithmetic where a mathematics library could round differently.
"""

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ivt2.data.synthetic import SHAPES, Shape, Split, draw_words, split_of, uniform
from ivt2.data.synthetic_render import HARMONICS, PERIOD, SAMPLE_RATE_HZ, TONE_HZ, ramped, wave_table

Tune = Literal["low", "middle", "high", "rising", "falling"]
Tunes: TypeAlias = tuple[Tune, ...]

TUNES: tuple[Tune, ...] = get_args(Tune)
DURATION_S = 2.0
"""Length of every sound."""

_SLOT = SAMPLE_RATE_HZ // 2
_SAID: dict[Tune, str] = {
    "low": "a low tone",
    "middle": "a middle tone",
    "high": "a high tone",
    "rising": "a tone that rises",
    "falling": "a tone that falls",
}
_HZ: dict[Tune, tuple[int, int]] = {
    "low": (TONE_HZ["low"], TONE_HZ["low"]),
    "middle": (TONE_HZ["middle"], TONE_HZ["middle"]),
    "high": (TONE_HZ["high"], TONE_HZ["high"]),
    "rising": (TONE_HZ["low"], TONE_HZ["high"]),
    "falling": (TONE_HZ["high"], TONE_HZ["low"]),
}


@dataclass(frozen=True, kw_only=True)
class Sound:
    """Four tones in two seconds.

    Args:
        key: name of the sample, as a scene's.
        tunes: kinds of the tones in their order.
        spans: first sample and number of samples of each tone.
        timbre: shape whose harmonics all four have.
        amplitude: of the first harmonic, for 16-bit samples.
        variant: which paraphrase stands first, in [0, 5).
    """

    key: str
    tunes: Tunes
    spans: tuple[tuple[int, int], ...]
    timbre: Shape
    amplitude: int
    variant: int

    @property
    def label(self) -> str:
        """Class of the sound: its first tone."""
        return f"{self.tunes[0]}_tone"

    @property
    def captions(self) -> tuple[str, ...]:
        """Five sentences that name the tones in their order; the first one is the caption."""
        first, second, third, fourth = (_SAID[tune] for tune in self.tunes)
        texts = (
            f"{first}, {second}, {third} and {fourth}",
            f"there is {first}, and {second}, {third} and {fourth}",
            f"{first} sounds, and {second}, and {third}, and {fourth}",
            f"what sounds is {first}, {second}, {third} and {fourth}",
            f"it sounds as {first}, {second} and {third} and {fourth}",
        )
        return texts[self.variant :] + texts[: self.variant]


@cache
def tune_combinations(split: Split) -> tuple[Tunes, ...]:
    """Return every combination of four tones of a split, always in the same order."""
    return tuple(tunes for tunes in itertools.product(TUNES, repeat=4) if split_of(tunes) == split)


def make_sounds(split: Split, num: int, seed: int) -> list[Sound]:
    """Draw sounds without replacement, as ``make_scenes`` draws scenes.

    Args:
        split: which combinations may occur.
        num: how many sounds.
        seed: changes order and free details, never the split.

    Raises:
        InputError: when validation or test has fewer combinations than asked for.
    """
    drawn = draw_words(tune_combinations(split), "sounds", split=split, num=num, seed=seed)
    return [_sound(tunes, split, seed, index) for index, tunes in enumerate(drawn)]


def sound_waveform(sound: Sound) -> NDArray[np.int16]:
    """Return 16-bit mono samples at ``SAMPLE_RATE_HZ``, ``DURATION_S`` long."""
    table = wave_table(sound.amplitude, HARMONICS[sound.timbre])
    samples = np.zeros(int(DURATION_S * SAMPLE_RATE_HZ), dtype=np.int16)
    for tune, (start, length) in zip(sound.tunes, sound.spans, strict=True):
        low, high = _HZ[tune]
        hz = low + (high - low) * np.arange(length) // length
        phase = np.cumsum(hz) * PERIOD // SAMPLE_RATE_HZ % PERIOD
        samples[start : start + length] = ramped(table[phase])
    return samples


def _sound(tunes: Tunes, split: Split, seed: int, index: int) -> Sound:
    draws = uniform(11, "sound", split, seed, index)
    spans = []
    for number in range(len(tunes)):
        length = int((0.6 + 0.3 * draws[number]) * _SLOT)
        spans.append((number * _SLOT + int(draws[4 + number] * (_SLOT - length)), length))
    return Sound(
        key=f"{split}_{index:06d}",
        tunes=tunes,
        spans=tuple(spans),
        timbre=SHAPES[int(draws[8] * len(SHAPES))],
        amplitude=4096 + int(4096 * draws[9]),
        variant=int(5 * draws[10]),
    )

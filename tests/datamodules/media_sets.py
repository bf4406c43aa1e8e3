"""Small shard sets of every medium, for the tests of this folder."""

from functools import cache

import numpy as np

from ivt2.data.shards import ShardWriter
from tests.data.clips import encode, image_bytes, picture, wav


@cache
def sounding(num_frames, with_sound=True):
    """A clip with a track of its own, or without."""
    audio_codec = "flac" if with_sound else None
    return encode(num_frames=num_frames, height=32, width=48, fps=8, audio_codec=audio_codec, container="matroska")


@cache
def hiss(number, seconds=0.2):
    """A sound that differs from all others."""
    return wav(np.random.default_rng(number).uniform(-0.3, 0.3, round(16_000 * seconds)))


def facts(number):
    """Captions, also by kind, of which one says what is heard."""
    kinds = {"video": [f"seen {number}"], "audio": [f"heard {number}", f"noise {number}"], "fused": [f"all {number}"]}
    return {"caption": f"all {number}", "captions": [f"seen {number}"], "caption_kinds": kinds}


SAMPLES = {
    "image": lambda number: {"png": image_bytes(picture(number, 24, 32)), "json": facts(number)},
    "video": lambda number: {"mkv": sounding(4 + number % 3, with_sound=False), "json": facts(number)},
    "audio": lambda number: {"wav": hiss(number, 10.1 if number == 1 else 0.2), "json": facts(number)},
    "audio_video": lambda number: {"mkv": sounding(4 + number % 3), "json": facts(number)},
}
"""Members of a sample by medium and number."""


def write_media(folder, medium, num, bad=None):
    """Write samples; ``bad`` maps numbers to the members of samples that stand in their place."""
    with ShardWriter(folder, max_samples=7, max_bytes=1 << 30) as writer:
        for number in range(num):
            writer.write(f"{medium}{number:02d}", (bad or {}).get(number) or SAMPLES[medium](number))
    return str(folder)

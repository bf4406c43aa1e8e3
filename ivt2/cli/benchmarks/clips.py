"""Clips that benchmarks read: rendered here, with texture, motion and grain, at the bit rates of web video."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FPS = 30
_PAN = 48  # pixels that the view moves each way over the background
_PERIOD_S = 7.0  # of its movement
_GRAINS = 4
_COLOUR = 0.3  # spread of the channels around the brightness, in parts of its own


@dataclass(frozen=True, kw_only=True)
class Footage:
    """How clips look.

    Args:
        name: for tables and files.
        width: of the frames in pixels, even.
        height: of the frames in pixels, even.
        num_frames: of a clip.
        gop: frames from one key frame to the next, at most.
        bit_rate: in bits a second.
        options: further ones of the encoder x264; its own defaults otherwise.
    """

    name: str
    width: int
    height: int
    num_frames: int
    gop: int
    bit_rate: int
    options: Mapping[str, str] = field(default_factory=dict)


def raw_footage(num_frames: int) -> Footage:
    """Clips as the web has them: 640x360, x264's defaults, 0.6 Mb/s."""
    return Footage(name="640x360 GOP 250", width=640, height=360, num_frames=num_frames, gop=250, bit_rate=600_000)


def prepared_footage(num_frames: int) -> Footage:
    """Clips encoded for sparse reading, as ``preparation=sparse`` does it, at the bit rate that it comes to."""
    return Footage(
        name="456x256 GOP 8",
        width=456,
        height=256,
        num_frames=num_frames,
        gop=8,
        bit_rate=420_000,
        options={"bf": "3", "b_strategy": "0", "b-pyramid": "none", "tune": "fastdecode"},
    )


def rendered(folder: Path, footage: Footage, num_clips: int) -> list[bytes]:
    """The clips of some footage as mp4; those that the folder holds already are not rendered again.

    Args:
        folder: where they are kept.
        footage: how they look.
        num_clips: how many, each with other content.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{footage.name.replace(' ', '_')}_{footage.num_frames}_{footage.bit_rate}"
    clips = []
    for number in range(num_clips):
        file = folder / f"{stem}_{number:03d}.mp4"
        if not file.exists():
            partial = file.with_suffix(".partial")
            partial.write_bytes(_encode(footage, number))
            partial.replace(file)
        clips.append(file.read_bytes())
    return clips


def write_shards(folder: Path, clips: Sequence[bytes], num_samples: int) -> Path:
    """Write shards in which the clips take turns, each time under another key.

    Returns:
        The folder.
    """
    from ivt2.data.shards import ShardWriter

    with ShardWriter(folder, max_samples=1000, max_bytes=1 << 30, overwrite=True) as writer:
        for number in range(num_samples):
            facts = {"caption": f"clip {number}"}
            writer.write(f"clip_{number:06d}", {"mp4": clips[number % len(clips)], "json": facts})
    return folder


def _encode(footage: Footage, seed: int) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "bitexact"}) as output:
        # the scene cuts that x264 would find change the distance of key frames
        options = {"threads": "1", "sc_threshold": "0", **footage.options}
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = footage.width, footage.height, "yuv420p"
        stream.gop_size, stream.bit_rate = footage.gop, footage.bit_rate
        for pixels in _frames(footage, seed):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


def _frames(footage: Footage, seed: int) -> Iterator[NDArray[np.uint8]]:
    """A view that moves over a textured ground, three things that cross it, and grain."""
    draws = np.random.default_rng(seed)
    height, width = footage.height, footage.width
    ground = _texture(draws, height + 2 * _PAN, width + 2 * _PAN)
    things = [_texture(draws, height // 3, width // 5) for _ in range(3)]
    speeds = draws.uniform(-3, 3, (3, 2))
    places = draws.uniform(0, 1, (3, 2)) * (height - height // 3, width - width // 5)
    grains = draws.normal(0, 2, (_GRAINS, height, width, 1)).astype(np.float32)
    for number in range(footage.num_frames):
        phase = 2 * np.pi * number / (_PERIOD_S * FPS)
        top, left = round(_PAN * (1 + np.sin(phase))), round(_PAN * (1 + np.cos(phase)))
        frame = ground[top : top + height, left : left + width].copy()
        for thing, place, speed in zip(things, places, speeds, strict=True):
            rows, columns = thing.shape[:2]
            room = np.array([height - rows, width - columns])
            # there and back between the edges
            down, right = (room - np.abs((place + number * speed) % (2 * room) - room)).astype(int)
            frame[down : down + rows, right : right + columns] = thing
        yield np.clip(frame + grains[number % _GRAINS], 0, 255).astype(np.uint8)


def _texture(draws: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Noise of four sizes, the coarse ones strongest; as in natural pictures, colour varies less than brightness."""
    from PIL import Image

    total = np.full((height, width, 3), 128, np.float32)
    for cell, strength in ((96, 45), (32, 25), (12, 12), (5, 6)):
        small = draws.normal(0, strength, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        small = small[..., :1] + _COLOUR * small
        for channel in range(3):
            plane = Image.fromarray(small[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            total[..., channel] += np.asarray(plane)
    return total

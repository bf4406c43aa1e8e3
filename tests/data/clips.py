"""Small clips and sounds that the tests of this folder encode themselves."""

import os
import struct
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from PIL import Image


def picture(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A smooth colourful frame that differs clearly from all others."""
    rows, columns = np.mgrid[0:height, 0:width]
    phase = number * 0.7
    waves = [np.sin(rows / 9 + phase), np.sin(columns / 11 - 2 * phase), np.cos((rows + columns) / 13 + 3 * phase)]
    return np.clip(127 + 110 * np.stack(waves, -1), 0, 255).astype(np.uint8)


@contextmanager
def usual_priority() -> Iterator[None]:
    """Undo what SVT-AV1 does to a thread of root: real-time priority, above the rest of the machine, for good."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def encode(
    *,
    codec: str = "libx264",
    container: str = "mp4",
    num_frames: int = 16,
    height: int = 64,
    width: int = 64,
    gop: int = 12,
    fps: int = 25,
    pixel_format: str = "yuv420p",
    ticks: list[int] | None = None,
    rotation: int = 0,
    audio_codec: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """A clip of ``picture`` frames; ``ticks`` are presentation times in units of 1 / fps, consecutive by default."""
    file = BytesIO()
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with (
        usual_priority(),
        av.open(file, "w", format=container, container_options=container_options or {}) as output,
    ):
        stream = output.add_stream(codec, rate=fps, options={"g": str(gop), **quiet, **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, fps)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = output.add_stream(audio_codec, rate=16_000, layout="mono") if audio_codec else None
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            frame.pts = ticks[number] if ticks else number
            frame.time_base = Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound is not None:
            mux_tone(output, sound, num_frames / fps)
    return file.getvalue()


def tone(seconds: float, rate_hz: int = 16_000) -> np.ndarray:
    """A 440 Hz sine of amplitude 1/2."""
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def mux_tone(output, stream, seconds: float) -> None:
    samples = tone(seconds)
    format_name = stream.codec_context.format.name
    integers = {"s16": (np.int16, 2**15 - 1), "s32": (np.int32, 2**31 - 1)}
    if format_name.rstrip("p") in integers:
        dtype, most = integers[format_name.rstrip("p")]
        samples = (samples.astype(np.float64) * most).astype(dtype)
    frame = av.AudioFrame.from_ndarray(samples[None], format=format_name, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
    output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def encode_audio(codec: str, container: str, seconds: float = 1.0) -> bytes:
    """A tone without any picture."""
    file = BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=16_000, layout="mono")
        mux_tone(output, stream, seconds)
    return file.getvalue()


def wav(samples: np.ndarray, rate_hz: int = 16_000) -> bytes:
    """16-bit samples [S] or [S, channels]."""
    file = BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        output.setsampwidth(2)
        output.setframerate(rate_hz)
        output.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def with_edit_list(data: bytes, skipped_s: float) -> bytes:
    """An mp4 whose edit list hides its first seconds (without B-frames, whose delay shares the field)."""
    patched = bytearray(data)
    at = data.index(b"elst")
    scale = struct.unpack(">I", data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20])[0]
    entries = struct.unpack(">I", data[at + 8 : at + 12])[0]
    assert entries == 1
    assert data[at + 4] == 0
    patched[at + 16 : at + 20] = struct.pack(">i", round(skipped_s * scale))
    return bytes(patched)


def giant(codec, container):
    """A small file whose header states 16000 x 16000 pixels."""
    if container == "avi":
        data = encode(codec=codec, container="avi", num_frames=4, pixel_format="yuvj420p", height=80, width=80)
        old, new = struct.pack(">HH", 80, 80), struct.pack(">HH", 16_000, 16_000)
        data = data.replace(b"\xff\xc0\x00\x11\x08" + old, b"\xff\xc0\x00\x11\x08" + new)
        return data.replace(struct.pack("<II", 80, 80), struct.pack("<II", 16_000, 16_000))
    data = encode(
        codec=codec, container="matroska", num_frames=2, height=320, width=320, container_options={"write_crc32": "0"}
    )
    for mark in (b"\xb0\x82", b"\xba\x82"):
        assert mark + struct.pack(">H", 320) in data
        data = data.replace(mark + struct.pack(">H", 320), mark + struct.pack(">H", 16_000))
    return data


def all_frames(data: bytes, container: str | None = None) -> np.ndarray:
    """Every shown frame by plain sequential decoding: the judge."""
    with av.open(BytesIO(data), format=container) as source:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])


def image_bytes(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture as a file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def faststart(folder) -> bytes:
    """An mp4 whose index precedes its frames."""
    file = folder / "clip.mp4"
    with av.open(str(file), "w", container_options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for number in range(60):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        output.mux(stream.encode())
    data = file.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    return data

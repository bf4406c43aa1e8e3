"""Sound of an audio or video file as mono samples."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from ivt2.data.containers import DecodeError, Limits, check_complete, sniff
from ivt2.data.decode_pyav import codec_errors, open_container

if TYPE_CHECKING:
    from av.container import InputContainer


def decode_audio(
    data: bytes,
    *,
    sample_rate_hz: int = 16_000,
    limits: Limits | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> Float32[Tensor, "S"] | None:
    """Decode the first audio track, averaged over its channels and resampled.

    Args:
        data: A whole WAV, FLAC, MP3, AAC or Ogg file, or a video file.
        sample_rate_hz: Samples per second wanted.
        limits: What to refuse; the default ``Limits()`` if None.
        start_s: Begin of the part wanted, in seconds; the track is decoded from its beginning, so the cut is exact.
        end_s: End of that part.

    Returns:
        Samples in [-1, 1], or None where the file has no audio track.

    Raises:
        DecodeError: The bytes cannot be used.
    """
    limits = limits or Limits()
    limits.check_bytes(data)
    container = sniff(data)
    if container is None:
        raise DecodeError("not_audio", f"{len(data)} bytes that are no known audio or video container")
    check_complete(data, container)
    with open_container(data, container) as opened:
        if not opened.streams.audio:
            return None
        limits.check_length(0, (opened.duration or 0) / 1_000_000)
        first = round((start_s or 0.0) * sample_rate_hz)
        longest = round(limits.max_duration_s * sample_rate_hz)
        last = longest if end_s is None else min(round(end_s * sample_rate_hz), longest)
        with codec_errors():
            parts = list(_cut(_samples(opened, sample_rate_hz), first, last))
    if not parts:
        raise DecodeError("empty", f"no sound from {start_s} to {end_s} s")
    return torch.from_numpy(np.concatenate(parts))


def _samples(opened: "InputContainer", sample_rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """Decode and resample piece by piece; channels are averaged here, as the library would weigh them otherwise."""
    from av.audio.resampler import AudioResampler

    stream = opened.streams.audio[0]
    resampler = AudioResampler(format="fltp", rate=sample_rate_hz)
    for frame in opened.decode(stream):
        yield from _arrays(resampler.resample(frame))
    yield from _arrays(resampler.resample(None))


def _arrays(frames: list[Any]) -> Iterator[NDArray[np.float32]]:
    for frame in frames:
        yield frame.to_ndarray().mean(axis=0, dtype=np.float32)


def _cut(pieces: Iterator[NDArray[np.float32]], first: int, last: int) -> Iterator[NDArray[np.float32]]:
    """Keep the samples numbered first to last - 1."""
    position = 0
    for piece in pieces:
        part = piece[max(first - position, 0) : max(last - position, 0)]
        position += len(piece)
        if len(part):
            yield part
        if position >= last:
            return

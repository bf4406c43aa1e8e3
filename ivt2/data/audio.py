"""Sound of an audio or video file as mono samples."""

import torch
from jaxtyping import Float32
from torch import Tensor

from ivt2.data.containers import Limits
from ivt2.data.decode_arrays import read_audio
from ivt2.data.isolation import DecoderProcess


def decode_audio(
    data: bytes,
    *,
    sample_rate_hz: int = 16_000,
    limits: Limits | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    process: DecoderProcess | None = None,
) -> Float32[Tensor, "S"] | None:
    """Decode the first audio track, averaged over its channels and resampled.

    Args:
        data: A whole WAV, FLAC, MP3, AAC or Ogg file, or a video file.
        sample_rate_hz: Samples per second wanted.
        limits: What to refuse; the default ``Limits()`` if None.
        start_s: Begin of the part wanted, in seconds; the track is decoded from its beginning, so the cut is exact.
        end_s: End of that part.
        process: Decodes in place of this process.

    Returns:
        Samples in [-1, 1], or None where the file has no audio track.

    Raises:
        DecodeError: The bytes cannot be used.
    """
    read = read_audio if process is None else process.read_audio
    samples = read(data, sample_rate_hz=sample_rate_hz, limits=limits or Limits(), start_s=start_s, end_s=end_s)
    return None if samples is None else torch.from_numpy(samples)

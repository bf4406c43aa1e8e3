"""Kaldi's log-mel filter bank, the picture of a sound that audio encoders read.

S samples, F frames, M mel bins.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ivt2.errors import InputError

LOG_MEL_MEAN = 15.41663
"""Mean of BEATs' log-mel energies. Source: BEATs (arXiv:2212.09058), released code."""
LOG_MEL_STD = 6.55582
"""Standard deviation of the same; BEATs divides by twice as much."""

INT16_SCALE = 2.0**15
"""Kaldi reads samples as 16-bit integers."""

PRE_EMPHASIS = 0.97
POVEY_POWER = 0.85
"""Kaldi's default window: a Hann window to this power."""
FLOOR = torch.finfo(torch.float32).eps
"""Least energy before the logarithm."""


def mel_filterbank(
    num_mels: int, *, sample_rate_hz: int = 16_000, fft_size: int = 512, low_hz: float = 20.0
) -> Float[Tensor, "M bins"]:
    """Weights of triangular filters, evenly spaced from ``low_hz`` to half the sample rate on the mel scale.

    The scale is ``mel(f) = 1127 ln(1 + f / 700)``; a triangle rises and falls linearly in mel and peaks at 1.

    Args:
        num_mels: Number M of filters.
        sample_rate_hz: Samples per second.
        fft_size: Length of the Fourier transform, even.
        low_hz: Left foot of the first filter in Hz.

    Returns:
        One row for each filter, one column for each of the ``fft_size // 2 + 1`` frequencies, in float32.

    Raises:
        InputError: if there are no filters.
    """
    return torch.from_numpy(_mel_filterbank(num_mels, sample_rate_hz, fft_size, low_hz)).float()


def log_mel(
    waveform: Float[Tensor, "*batch S"],
    *,
    num_mels: int,
    sample_rate_hz: int = 16_000,
    frame_ms: float = 25.0,
    hop_ms: float = 10.0,
    low_hz: float = 20.0,
) -> Float[Tensor, "*batch F M"]:
    """Logarithms of the mel energies of overlapping frames, as Kaldi computes them without dither.

    Each frame loses its mean, is pre-emphasised (``x[t] - 0.97 x[t - 1]``), windowed and padded with zeros to the next
    power of two; the squared absolute values of its Fourier transform are summed under each filter and floored.
    Only whole frames count: 10 s at 16 kHz are 998.

    Args:
        waveform: Mono samples at the scale of 16-bit integers.
        num_mels: Number M of filters: 128 for BEATs itself, 64 for InternVideo2's audio encoder.
        sample_rate_hz: Samples per second.
        frame_ms: Length of a frame in milliseconds.
        hop_ms: Milliseconds from frame to frame.
        low_hz: Left foot of the first filter in Hz; the last one ends at half the sample rate.

    Returns:
        Natural logarithms, in float64 for float64 samples and in float32 otherwise.

    Raises:
        InputError: if the sound is shorter than one frame, or there are no filters.

    Source: Kaldi, ``compute-fbank-feats`` with its defaults (povey window, snip edges) and ``--dither=0``.
    """
    length, hop = int(sample_rate_hz * frame_ms / 1000), int(sample_rate_hz * hop_ms / 1000)
    num_samples = waveform.shape[-1]
    if num_samples < length:
        raise InputError(
            f"a sound of {num_samples} samples is shorter than one frame of {length}: pad it with zeros or leave it out"
        )
    dtype = torch.promote_types(waveform.dtype, torch.float32)
    fft_size = 2 ** math.ceil(math.log2(length))
    window = torch.from_numpy(_povey_window(length)).to(waveform.device, dtype)
    filters = torch.from_numpy(_mel_filterbank(num_mels, sample_rate_hz, fft_size, low_hz)).to(waveform.device, dtype)

    frames = waveform.to(dtype).unfold(-1, length, hop)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    spectrum = torch.fft.rfft((frames - PRE_EMPHASIS * before) * window, n=fft_size)
    power = spectrum.real.square() + spectrum.imag.square()
    energy: Tensor = power @ filters.T
    return energy.clamp(min=FLOOR).log()


def log_mel_features(
    waveform: Float[Tensor, "*batch S"], *, num_mels: int = 64, num_frames: int | None = None
) -> Float[Tensor, "*batch F M"]:
    """What BEATs reads: the log-mel energies, brought to its range, of a sound at 16 kHz.

    Args:
        waveform: Mono samples in [-1, 1].
        num_mels: 64 for InternVideo2's audio encoder, 128 for BEATs itself.
        num_frames: Rows wanted, such as 998 for 10 s; zeros fill up what is missing. None leaves the rows as they are.

    Raises:
        InputError: if the sound is shorter than one frame, or has more rows than wanted.

    Source: BEATs, released code; reference multi_modality, audio dataset (64 bins, zero rows after normalisation).
    """
    features = (log_mel(waveform * INT16_SCALE, num_mels=num_mels) - LOG_MEL_MEAN) / (2 * LOG_MEL_STD)
    if num_frames is None:
        return features
    missing = num_frames - features.shape[-2]
    if missing < 0:
        raise InputError(f"a sound of {features.shape[-2]} frames is longer than {num_frames}: cut it to length first")
    return functional.pad(features, (0, 0, 0, missing))


def _povey_window(length: int) -> NDArray[np.float64]:
    return np.asarray(np.hanning(length) ** POVEY_POWER)


def _mel_filterbank(num_mels: int, sample_rate_hz: int, fft_size: int, low_hz: float) -> NDArray[np.float64]:
    if num_mels < 1:
        raise InputError(f"num_mels={num_mels} leaves no filters: use 64 or 128")
    frequencies = sample_rate_hz / fft_size * np.arange(fft_size // 2 + 1)
    mels = 1127 * np.log1p(frequencies / 700)
    low, high = 1127 * np.log1p(np.array([low_hz, sample_rate_hz / 2]) / 700)
    feet = np.linspace(low, high, num_mels + 2)
    left, centre, right = feet[:-2, None], feet[1:-1, None], feet[2:, None]
    rise, fall = (mels - left) / (centre - left), (right - mels) / (right - centre)
    weights: NDArray[np.float64] = np.minimum(rise, fall).clip(min=0)
    return weights

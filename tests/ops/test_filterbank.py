"""The filter bank against slow loops and Kaldi itself."""

import cmath
import math

import kaldi_native_fbank
import numpy as np
import pytest
import torch

from ivt2.errors import InputError
from ivt2.ops.filterbank import INT16_SCALE, log_mel, log_mel_features, mel_filterbank


def sound(num_samples, *batch):
    """Noise and a hum at the scale of 16-bit integers, off zero."""
    noise = torch.randn(*batch, num_samples, generator=torch.Generator().manual_seed(0))
    hum = torch.sin(torch.arange(num_samples) * 2 * math.pi * 440 / 16_000)
    return 2000 * noise + 4000 * hum + 300


def mel(hertz):
    return 1127 * math.log(1 + hertz / 700)


def slow_filter(index, num_mels, frequency):
    step = (mel(8000) - mel(20)) / (num_mels + 1)
    left = mel(20) + index * step
    rise, fall = (mel(frequency) - left) / step, (left + 2 * step - mel(frequency)) / step
    return max(0.0, min(rise, fall))


def slow_log_mel(samples, num_mels):
    rows = []
    for start in range(0, len(samples) - 400 + 1, 160):
        frame = samples[start : start + 400]
        mean = sum(frame) / 400
        frame = [sample - mean for sample in frame]
        frame = [sample - 0.97 * frame[max(place - 1, 0)] for place, sample in enumerate(frame)]
        hann = [0.5 - 0.5 * math.cos(2 * math.pi * place / 399) for place in range(400)]
        frame = [sample * weight**0.85 for sample, weight in zip(frame, hann, strict=True)]
        power = [0.0] * 256
        for k in range(256):
            wave = sum(sample * cmath.exp(-2j * math.pi * k * place / 512) for place, sample in enumerate(frame))
            power[k] = abs(wave) ** 2
        energies = [
            sum(power[k] * slow_filter(index, num_mels, k * 16_000 / 512) for k in range(256))
            for index in range(num_mels)
        ]
        rows.append([math.log(max(energy, 2.0**-23)) for energy in energies])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("num_mels", [64, 128])
def test_against_the_slow_loop(num_mels):
    samples = sound(600).double()
    expected = slow_log_mel(samples.tolist(), num_mels)
    assert expected.shape == (2, num_mels)
    torch.testing.assert_close(log_mel(samples, num_mels=num_mels), expected, atol=1e-9, rtol=1e-9)
    # A bin far below the loudest one keeps fewer digits in float32.
    torch.testing.assert_close(log_mel(samples.float(), num_mels=num_mels).double(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("num_mels", "sample_rate_hz"), [(64, 16_000), (40, 16_000), (40, 8000)])
def test_against_kaldi(num_mels, sample_rate_hz):
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = sample_rate_hz
    options.mel_opts.num_bins = num_mels
    judge = kaldi_native_fbank.OnlineFbank(options)
    samples = sound(16_000)
    judge.accept_waveform(sample_rate_hz, samples.numpy())
    judge.input_finished()
    expected = np.stack([judge.get_frame(index) for index in range(judge.num_frames_ready)])
    actual = log_mel(samples, num_mels=num_mels, sample_rate_hz=sample_rate_hz)
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=1e-3, rtol=0)
    assert (actual - torch.from_numpy(expected)).abs().mean() < 2e-5


def test_filters_are_even_on_the_mel_scale():
    weights = mel_filterbank(64)
    assert weights.shape == (64, 257)
    assert weights.dtype == torch.float32
    expected = [[slow_filter(index, 64, k * 31.25) for k in range(256)] + [0.0] for index in range(64)]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert weights.amax() <= 1


def test_sounds_of_a_batch_do_not_mix():
    samples = sound(1000, 2, 3)
    together = log_mel(samples, num_mels=64)
    assert together.shape == (2, 3, 4, 64)
    for first in range(2):
        for second in range(3):
            torch.testing.assert_close(together[first, second], log_mel(samples[first, second], num_mels=64))


def test_ten_seconds_are_998_frames():
    assert log_mel(torch.zeros(160_000), num_mels=128).shape == (998, 128)


def test_silence_is_the_floor():
    silence = log_mel(torch.full((800,), 50.0), num_mels=64)
    assert torch.equal(silence, torch.full_like(silence, math.log(2.0**-23)))


def test_faint_sounds_are_cut_off_at_the_floor():
    samples = sound(800).double()
    faint = log_mel(samples * 1e-7, num_mels=64)
    expected = (log_mel(samples, num_mels=64) + 2 * math.log(1e-7)).clamp(min=math.log(2.0**-23))
    torch.testing.assert_close(faint, expected)
    assert 0 < (faint == faint.min()).float().mean() < 1


def test_half_precision_is_computed_in_float32():
    samples = sound(800).half()
    assert torch.equal(log_mel(samples, num_mels=64), log_mel(samples.float(), num_mels=64))


@pytest.mark.parametrize("num_mels", [64, 128])
def test_features_are_scaled_normalised_and_padded(num_mels):
    samples = sound(1000) / INT16_SCALE
    features = log_mel_features(samples, num_mels=num_mels, num_frames=10)
    raw = log_mel(sound(1000), num_mels=num_mels)
    assert features.shape == (10, num_mels)
    torch.testing.assert_close(features[:4], (raw - 15.41663) / 13.11164, atol=1e-5, rtol=1e-5)
    assert not features[4:].any()
    assert torch.equal(log_mel_features(samples, num_mels=num_mels), features[:4])
    assert torch.equal(log_mel_features(samples, num_mels=num_mels, num_frames=4), features[:4])


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="399 samples is shorter than one frame of 400: pad it"):
        log_mel(torch.zeros(399), num_mels=64)
    with pytest.raises(InputError, match="4 frames is longer than 3: cut it"):
        log_mel_features(torch.zeros(1000), num_frames=3)
    with pytest.raises(InputError, match="num_mels=0 leaves no filters"):
        log_mel(torch.zeros(400), num_mels=0)

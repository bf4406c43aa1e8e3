import numpy as np
import pytest
import torch

from ivt2.data.audio import decode_audio
from ivt2.data.containers import DecodeError, Limits
from tests.data.clips import encode, encode_audio, tone, wav


def test_wav_is_exact():
    samples = decode_audio(wav(tone(0.5)))
    assert samples.dtype == torch.float32
    np.testing.assert_allclose(samples, tone(0.5), atol=1e-4)


def test_flac_is_exact():
    np.testing.assert_allclose(decode_audio(encode_audio("flac", "flac", 0.5)), tone(0.5), atol=1e-4)


@pytest.mark.parametrize(("codec", "container"), [("libmp3lame", "mp3"), ("aac", "adts"), ("libopus", "ogg")])
def test_lossy_codecs_give_the_tone(codec, container):
    samples = decode_audio(encode_audio(codec, container, 1.0)).numpy()
    assert abs(len(samples) - 16_000) < 4000
    spectrum = np.abs(np.fft.rfft(samples[4000:12_000]))
    assert abs(np.argmax(spectrum) * 2 - 440) <= 2
    assert abs(samples[4000:12_000].std() - 0.5 / np.sqrt(2)) < 0.02


def test_channels_are_averaged_and_rate_converted():
    left = tone(0.5, 48_000)
    mono = decode_audio(wav(np.stack([left, np.zeros_like(left)], axis=1), 48_000))
    assert abs(len(mono) - 8000) <= 1
    np.testing.assert_allclose(mono[200:7800], 0.5 * tone(0.5)[200:7800], atol=2e-3)
    assert abs(len(decode_audio(wav(left, 48_000), sample_rate_hz=8000)) - 4000) <= 1


def test_span_is_cut_to_the_sample():
    data = wav(tone(1.0))
    np.testing.assert_array_equal(decode_audio(data, start_s=0.25, end_s=0.5), decode_audio(data)[4000:8000])
    np.testing.assert_array_equal(decode_audio(data, start_s=0.9, end_s=9.0), decode_audio(data)[14_400:])
    with pytest.raises(DecodeError) as caught:
        decode_audio(data, start_s=2.0)
    assert caught.value.reason == "empty"


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_track_of_a_video(container):
    samples = decode_audio(encode(container=container, audio_codec="aac", num_frames=25)).numpy()
    spectrum = np.abs(np.fft.rfft(samples[4000:12_000]))
    assert abs(np.argmax(spectrum) * 2 - 440) <= 2


def test_silent_video_has_none():
    assert decode_audio(encode()) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "not_audio"), (b"RIFF\x00\x00\x00\x00WAVE" + bytes(64), "corrupt"), (b"<html>" * 50, "not_audio")],
)
def test_no_sound_file(data, reason):
    with pytest.raises(DecodeError) as caught:
        decode_audio(data)
    assert caught.value.reason == reason


def test_too_long_is_refused_by_header():
    with pytest.raises(DecodeError) as caught:
        decode_audio(wav(tone(1.0)), limits=Limits(max_duration_s=0.5))
    assert caught.value.reason == "too_long"


def test_truncated_video_is_refused():
    data = encode(audio_codec="aac")
    with pytest.raises(DecodeError) as caught:
        decode_audio(data[: len(data) // 2])
    assert caught.value.reason == "truncated"

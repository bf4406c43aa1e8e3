"""Oracle: ten seconds of a sound, cut and filled up as in training; what happens where there is none."""

import numpy as np
import pytest
import torch

from ivt2.data.audio import decode_audio
from ivt2.data.decode import DecodeError
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import SampleError
from ivt2.data.sound import SoundReader, ten_seconds
from ivt2.ops.filterbank import log_mel_features
from tests.data.clips import encode, encode_audio, tone, wav

WANTED = 160_000


def noise(length):
    return torch.from_numpy(np.random.default_rng(1).uniform(-0.5, 0.5, length).astype(np.float32))


def generator(seed=0):
    return np.random.default_rng(seed)


def test_a_short_sound_of_its_own_is_followed_by_silence():
    samples = noise(16_000)
    silence = torch.zeros(WANTED - 16_000)
    assert torch.equal(ten_seconds(samples, of_video=False), log_mel_features(torch.cat([samples, silence])))


def test_a_short_track_of_a_video_is_followed_by_zero_rows():
    samples = noise(16_000)
    features = ten_seconds(samples, of_video=True)
    assert features.shape == (998, 64)
    assert torch.equal(features[:98], log_mel_features(samples))
    assert not features[98:].any()
    assert ten_seconds(samples[:100], of_video=True).shape == (998, 64)


def test_a_long_sound_is_cut_anywhere_for_training_and_in_the_middle_otherwise():
    samples = noise(WANTED + 3)
    possible = [log_mel_features(samples[start : start + WANTED]) for start in range(4)]
    drawn = [ten_seconds(samples, of_video=True, generator=generator(seed)) for seed in range(12)]
    starts = {next(start for start in range(4) if torch.equal(features, possible[start])) for features in drawn}
    assert starts == {0, 1, 2, 3}
    assert torch.equal(ten_seconds(samples, of_video=False), possible[1])


def test_nothing_is_drawn_for_a_sound_without_a_choice():
    chance = generator()
    ten_seconds(noise(1000), of_video=False, generator=chance)
    ten_seconds(noise(WANTED), of_video=False, generator=chance)
    assert chance.integers(1 << 30) == generator().integers(1 << 30)


CLIP = encode(num_frames=16, height=32, width=32, fps=8, audio_codec="flac", container="matroska")
"""Two seconds of a tone."""
SILENT = encode(num_frames=4, height=32, width=32)


@pytest.mark.parametrize("isolated", [False, True])
def test_the_member_or_the_track_of_the_video_is_read(isolated):
    process = DecoderProcess() if isolated else None
    sound = wav(noise(8000).numpy())
    members = {"mkv": CLIP, "wav": sound, "json": b"{}"}
    try:
        from_file = SoundReader(read_from="audio").read(members, generator(), process=process)
        from_video = SoundReader(read_from="video").read(members, generator(), start_s=0.5, end_s=1.5, process=process)
    finally:
        if process:
            process.close()
    assert torch.equal(from_file, ten_seconds(decode_audio(sound), of_video=False))
    assert torch.equal(from_video[:98], log_mel_features(decode_audio(CLIP)[8000:24_000]))
    assert not from_video[98:].any()


def test_only_training_crops_at_random():
    members = {"wav": wav(noise(WANTED + 8000).numpy())}
    random, again, middle, once_more = (
        SoundReader(crop=crop).read(members, generator(seed))
        for crop, seed in (("random", 3), ("random", 4), ("middle", 3), ("middle", 4))
    )
    assert not torch.equal(random, again)
    assert torch.equal(middle, once_more)


NO_SOUND = [
    ({"mp4": SILENT}, "video", None),
    ({"mkv": CLIP}, "audio", None),
    ({"wav": b"x"}, "video", None),
    ({"mkv": CLIP}, "video", 3.0),
]


@pytest.mark.parametrize(("members", "read_from", "start_s"), NO_SOUND, ids=["track", "member", "video", "segment"])
def test_a_sample_without_sound_is_left_out_or_filled_with_zeros(members, read_from, start_s):
    with pytest.raises(SampleError, match="audio_missing"):
        SoundReader(read_from=read_from).read(members, generator(), start_s=start_s)
    padded = SoundReader(read_from=read_from, missing="pad").read(members, generator(), start_s=start_s)
    assert torch.equal(padded, torch.zeros(998, 64))


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 48_000])
def test_stereo_of_any_rate_is_heard_as_its_mean_at_16_khz(rate_hz):
    left = tone(0.5, rate_hz)
    stereo = wav(np.stack([left, np.zeros_like(left)], axis=1), rate_hz)
    features = SoundReader().read({"wav": stereo}, generator())
    expected = ten_seconds(torch.from_numpy(0.5 * tone(0.5)).float(), of_video=False)
    loudest = expected[20].argmax()
    assert features.shape == expected.shape
    assert (features[2:46].argmax(dim=1) == loudest).all()
    torch.testing.assert_close(features[2:46, loudest], expected[2:46, loudest], atol=0.02, rtol=0)


def test_silence_is_a_sound_and_not_a_missing_one():
    features = SoundReader(missing="skip").read({"wav": wav(np.zeros(8000))}, generator())
    assert features.isfinite().all()
    assert len(features.unique()) == 1
    assert features[0, 0] < 0


@pytest.mark.parametrize("missing", ["skip", "pad"])
def test_a_damaged_sound_is_never_taken_for_a_missing_one(missing):
    whole = encode_audio("flac", "flac")
    reader = SoundReader(missing=missing)
    for damaged in (whole[: len(whole) // 2], b"no sound at all"):
        with pytest.raises(DecodeError):
            reader.read({"flac": damaged}, generator())

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ivt2.data.audio import decode_audio
from ivt2.data.containers import Limits
from ivt2.data.inputs import AudioTransform, ClipTransform, each
from ivt2.data.transforms import resize
from ivt2.errors import InputError
from ivt2.ops.filterbank import log_mel_features
from tests.data.clips import all_frames, encode, encode_audio, picture, tone, wav

clip = ClipTransform(4, 28)
fbank = AudioTransform()


def expected(frames: np.ndarray) -> torch.Tensor:
    """Chosen frames [T, H, W, 3], resized as evaluation does."""
    return resize(torch.from_numpy(frames).permute(0, 3, 1, 2), 28, 28)


@pytest.fixture(scope="module")
def video():
    return encode(num_frames=8, height=48, width=64)


@pytest.fixture(scope="module")
def frames(video):
    return all_frames(video)


def test_a_video_gives_the_middle_frames_of_equal_segments(video, frames, tmp_path):
    (tmp_path / "a.mp4").write_bytes(video)
    wanted = expected(frames[[0, 2, 4, 6]])
    for source in (video, tmp_path / "a.mp4", str(tmp_path / "a.mp4")):
        got = clip(source)
        assert got.dtype == torch.uint8
        assert torch.equal(got, wanted)


def test_arrays_of_either_layout_are_clips(frames):
    wanted = expected(frames[[0, 2, 4, 6]])
    channels_first = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    for source in (frames, channels_first, torch.from_numpy(frames), torch.from_numpy(channels_first)):
        assert torch.equal(clip(source), wanted)
    assert torch.equal(clip(frames[:2]), expected(frames[[0, 1, 1, 1]]))


def test_pictures_are_clips_of_one_frame(tmp_path):
    pixels = picture(3, 48, 64)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    wanted = expected(pixels[None])
    sources = [tmp_path / "a.png", file.getvalue(), Image.fromarray(pixels), pixels, pixels.transpose(2, 0, 1)]
    for source in sources:
        assert torch.equal(clip(source), wanted)
    grey = clip(Image.fromarray(pixels).convert("L"))
    assert grey.shape == (1, 3, 28, 28)


def test_pictures_are_turned_as_their_header_says():
    image = Image.fromarray(picture(0, 48, 64))
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, "PNG", exif=exif)
    turned = clip(Image.open(io.BytesIO(file.getvalue())))
    assert torch.equal(turned, clip(file.getvalue()))
    assert torch.equal(turned, clip(image.rotate(-90, expand=True)))


def test_antialias_can_be_left_out(frames):
    sharp = ClipTransform(1, 28, antialias=False)(frames[:1])
    assert torch.equal(sharp, resize(torch.from_numpy(frames[:1]).permute(0, 3, 1, 2), 28, 28, antialias=False))
    assert not torch.equal(sharp, ClipTransform(1, 28)(frames[:1]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.mp4", r"none\.mp4: cannot be read \(No such file or directory\); check the path"),
        ("https://example.org/a.mp4", "download it first"),
        (b"hello", "^5 bytes: cannot be used as video or picture .not_image"),
        (encode(num_frames=2)[:500], "500 bytes: .*truncated"),
        (np.zeros((2, 8, 8, 3), np.float32), r"array \[2, 8, 8, 3\]: pixels are float32; give uint8"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"array \[2, 8, 8, 4\]: give \[T, H, W, 3\]"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"array \[8, 8\]: give"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"array \[0, 8, 8, 3\]: give"),
        (17, "^int is no video"),
        ("/dev/zero", "^/dev/zero: is not a file; check the path"),
        ("/", "^/: is not a file"),
        ("a\0.mp4", "cannot be read .embedded null byte.; check the path"),
    ],
)
def test_what_is_no_video_is_named(source, message):
    with pytest.raises(InputError, match=message):
        clip(source)


def test_files_are_measured_before_they_are_read(tmp_path):
    with (tmp_path / "large.mp4").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="too_many_bytes: 1099511627776 bytes"):
        ClipTransform(1, 28, limits=Limits())(tmp_path / "large.mp4")


def test_the_failing_item_of_a_list_is_named(frames):
    clips = each([frames, "none.mp4", frames], clip, kind="video")
    assert torch.equal(next(clips), clip(frames))  # one at a time: a long list need not fit into memory
    with pytest.raises(InputError, match=r"^video 1 of 3: none\.mp4: cannot be read"):
        next(clips)


@pytest.mark.parametrize("num_mels", [64, 128])
def test_a_short_sound_is_filled_up_with_silence(num_mels):
    samples = torch.from_numpy(tone(1.0))
    wanted = log_mel_features(torch.nn.functional.pad(samples, (0, 144_000)), num_mels=num_mels)
    got = AudioTransform(num_mels)((samples, 16_000))
    assert got.shape == (998, num_mels)
    assert torch.equal(got, wanted)
    assert torch.equal(AudioTransform(num_mels)((torch.stack([samples, samples]), 16_000)), wanted)


def test_files_and_bytes_of_a_sound(tmp_path):
    data = wav(tone(1.0))
    (tmp_path / "a.wav").write_bytes(data)
    samples = torch.nn.functional.pad(decode_audio(data), (0, 144_000))
    wanted = log_mel_features(samples, num_mels=64)
    for source in (data, tmp_path / "a.wav", str(tmp_path / "a.wav")):
        assert torch.equal(fbank(source), wanted)


def test_the_track_of_a_video_is_filled_up_with_rows_of_zeros():
    data = encode(num_frames=25, audio_codec="aac")
    wanted = log_mel_features(decode_audio(data), num_mels=64)
    got = fbank(data)
    assert torch.equal(got[: len(wanted)], wanted)
    assert not got[len(wanted) :].any()
    assert fbank(encode_audio("aac", "mp4"))[-1].all()  # a sound of its own, in the same container


def test_a_long_sound_gives_its_middle():
    samples = torch.rand(12 * 16_000) - 0.5
    assert torch.equal(fbank((samples, 16_000)), log_mel_features(samples[16_000:-16_000], num_mels=64))


def test_other_rates_are_resampled_as_files_are():
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 44_100).astype(np.float32)
    rows = fbank((noise, 44_100))
    assert torch.allclose(rows, fbank(wav(noise, 44_100)), atol=0.01)
    assert (rows[:97] > -1).all()
    assert (rows[101:] == rows[-1]).all()  # one second, then silence


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.wav", "none.wav: cannot be read"),
        (b"hello", "5 bytes: cannot be used as sound .not_audio"),
        (encode(num_frames=2), "has no audio track"),
        ((tone(1.0), 16_000.0), "this tuple is no sound"),
        ((np.zeros(100, np.int16), 16_000), r"samples torch.int16 \[100\] at 16000 Hz are no sound"),
        ((np.zeros(0, np.float32), 16_000), "are no sound"),
        ((np.zeros(10, np.float32), 0), "at 0 Hz"),
    ],
)
def test_what_is_no_sound_is_named(source, message):
    with pytest.raises(InputError, match=message):
        fbank(source)

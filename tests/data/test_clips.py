"""Exact: a clip holds the frames, captions and size that were asked for, or says why there is none."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ivt2.data.audio import decode_audio
from ivt2.data.clips import ClipReader, choose_caption
from ivt2.data.decode import decode_video
from ivt2.data.ledger import SampleError
from ivt2.data.sampling import middle
from ivt2.data.shards import ShardSet, ShardWriter
from ivt2.data.sound import SoundReader, ten_seconds
from ivt2.data.transforms import Resize
from ivt2.ops.filterbank import log_mel_features
from tests.data.clips import encode, tone, wav


def jpg(level):
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), level, np.uint8)).save(file, "jpeg")
    return file.getvalue()


def reader(folder, samples, **changed):
    with ShardWriter(folder, max_samples=100, max_bytes=1 << 30) as writer:
        for number, sample in enumerate(samples):
            writer.write(str(number), sample)
    arguments = {"choose": lambda length, _: middle(length, 2), "num_frames": 2, "transforms": [Resize(16)]}
    return ClipReader(ShardSet.open(folder), **{**arguments, **changed})


def generator():
    return np.random.default_rng(0)


CLIP = encode(num_frames=20, height=32, width=48, fps=10)


def test_frames_and_captions(tmp_path):
    source = reader(tmp_path, [{"mp4": CLIP, "json": {"caption": "A dog!", "captions": ["Two dogs."]}}], transforms=[])
    clip = source.read(0, generator())
    assert clip.captions == ["A dog!", "Two dogs."]
    assert clip.text == ["a dog", "two dogs"]
    assert torch.equal(clip.video, decode_video(CLIP, lambda *_: [4, 14]).frames)


def test_trimming_keeps_to_the_annotated_segment(tmp_path):
    facts = {"caption": "a dog", "start_s": 1.0, "end_s": 1.4}
    source = reader(tmp_path / "a", [{"mp4": CLIP, "json": facts}], transforms=[], trim=True)
    assert torch.equal(source.read(0, generator()).video, decode_video(CLIP, lambda *_: [10, 12]).frames)
    beyond = [
        {"mp4": CLIP, "json": {**facts, "start_s": 9, "end_s": 10}},
        {"mp4": CLIP, "json": {**facts, "end_s": -1}},
    ]
    source = reader(tmp_path / "b", beyond, trim=True)
    for index, reason in enumerate(["empty", "segment_invalid"]):
        with pytest.raises(SampleError, match=reason):
            source.read(index, generator())


def test_images_are_clips_of_one_frame(tmp_path):
    source = reader(tmp_path, [{"jpg": jpg(200), "txt": "a wall"}, {"mp4": CLIP, "txt": "a dog"}])
    clip = source.read(0, generator())
    assert clip.video.shape == (1, 3, 16, 16)
    assert clip.video.float().mean() == pytest.approx(200, abs=2)
    assert source.empty.shape == (0, 1, 3, 16, 16)
    with pytest.raises(SampleError, match="image_missing"):
        source.read(1, generator())


def test_an_image_among_videos_is_no_clip(tmp_path):
    source = reader(tmp_path, [{"txt": "nothing"}, {"mp4": CLIP, "txt": "a dog"}, {"jpg": jpg(9), "txt": "a wall"}])
    assert source.empty.shape == (0, 2, 3, 16, 16)
    for index in (0, 2):
        with pytest.raises(SampleError, match="video_missing"):
            source.read(index, generator())


def test_the_caption_of_a_step():
    text = ["a", "b", "c"]
    drawn = {choose_caption(text, "random", np.random.default_rng(seed)) for seed in range(40)}
    assert drawn == {"a", "b", "c"}
    assert choose_caption(text, "first", generator()) == "a"


SOUNDING = encode(num_frames=20, height=32, width=48, fps=10, audio_codec="flac", container="matroska")


def test_a_video_with_its_sound_shows_and_sounds_the_same_segment(tmp_path):
    facts = {"caption": "a dog", "start_s": 1.0, "end_s": 1.5}
    track = SoundReader(read_from="video")
    options = {"transforms": [], "trim": True, "medium": "audio_video", "sound": track}
    clip = reader(tmp_path, [{"mkv": SOUNDING, "json": facts}], **options).read(0, generator())
    assert torch.equal(clip.video, decode_video(SOUNDING, lambda *_: [10, 13]).frames)
    assert torch.equal(clip.audio[:48], log_mel_features(decode_audio(SOUNDING)[16_000:24_000]))
    assert not clip.audio[48:].any()


def test_a_sound_alone_has_no_pictures(tmp_path):
    sound = wav(tone(0.5))
    source = reader(tmp_path, [{"wav": sound, "txt": "a tone"}, {"mp4": CLIP, "txt": "a dog"}], medium="audio")
    clip = source.read(0, generator())
    assert clip.video is None
    assert torch.equal(clip.audio, ten_seconds(decode_audio(sound), of_video=False))
    with pytest.raises(SampleError, match="audio_missing"):
        source.read(1, generator())


JPG, WAV = {"jpg": b"x"}, {"wav": b"x"}
MP4, BOTH = {"mp4": b"x"}, {"mp4": b"x", "flac": b"x"}


@pytest.mark.parametrize(
    ("samples", "medium"),
    [
        ([{}, JPG, MP4], "image"), ([MP4, JPG, WAV], "video"), ([WAV, WAV], "audio"), ([BOTH], "video"),
        ([{**JPG, **WAV}], "image"), ([WAV, {}, MP4], "video"), ([WAV] * 100 + [MP4], "audio"), ([{}], "video"),
    ],
)  # fmt: skip
def test_the_first_samples_tell_the_medium(tmp_path, samples, medium):
    source = reader(tmp_path, [{**sample, "txt": "x"} for sample in samples])
    assert source.medium == medium


def test_media_that_are_not_used_are_not_read(tmp_path, monkeypatch):
    source = reader(tmp_path, [{"mp4": CLIP, "wav": wav(tone(0.1)), "jpg": jpg(9), "txt": "a dog"}])
    asked = []
    read = source.shards.read
    monkeypatch.setattr(source.shards, "read", lambda *given: (asked.append(read(*given)), asked[-1])[1])
    source.read(0, generator())
    assert asked[0].members.keys() == {"mp4", "txt"}


def test_captions_of_too_few_words_are_not_used(tmp_path):
    samples = [
        {"mp4": CLIP, "json": {"caption": "Dog!", "captions": ["A dog.", "dogs - / -", "a dog runs"]}},
        {"mp4": CLIP, "json": {"caption": "dog"}},
    ]
    source = reader(tmp_path, samples, min_words=2)
    clip = source.read(0, generator())
    assert clip.captions == ["A dog.", "a dog runs"]
    assert clip.text == ["a dog", "a dog runs"]
    with pytest.raises(SampleError, match="text_too_short"):
        source.read(1, generator())
    source.min_words = 0
    assert len(source.read(0, generator()).text) == 4


KINDS = {"fused": ["A dog barks."], "audio": ["Barking!", "A bark."], "speech": ["Sit!"]}


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        (KINDS, None),
        ({"fused": ["A dog barks."]}, "caption_kind_missing"),
        ({**KINDS, "speech": []}, "caption_kind_missing"),
        ("fused", "caption_kind_missing"),
        (None, "caption_kind_missing"),
        ({**KINDS, "audio": [3]}, "text_not_a_string"),
        ({**KINDS, "audio": ["?!"]}, "text_empty"),
        ({**KINDS, "audio": ["barking"]}, "text_too_short"),
    ],
)
def test_captions_by_kind(tmp_path, stated, reason):
    facts = {"caption": "A dog barks.", "caption_kinds": stated}
    asked = ["audio", "fused", "speech"]
    source = reader(tmp_path, [{"mp4": CLIP, "json": facts}], caption_kinds=asked, min_words=2)
    if reason is not None:
        with pytest.raises(SampleError, match=reason):
            source.read(0, generator())
        return
    clip = source.read(0, generator())
    assert clip.kinds == {"audio": ["a bark"], "fused": ["a dog barks"], "speech": ["sit"]}
    assert list(clip.kinds) == asked

"""Exact: a clip holds the frames, content and size that were asked for, or says why there is none."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ivt2.data.audio import decode_audio
from ivt2.data.captions import CaptionReader
from ivt2.data.clips import ClipReader
from ivt2.data.decode import decode_video
from ivt2.data.labels import LabelReader
from ivt2.data.ledger import SampleError
from ivt2.data.sampling import middle
from ivt2.data.shards import ShardSet, ShardWriter
from ivt2.data.sound import SoundReader, ten_seconds
from ivt2.data.transforms import HorizontalFlip, Resize
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
    arguments = {"content": CaptionReader(), "choose": lambda length, _: middle(length, 2), "num_frames": 2}
    arguments["transforms"] = [Resize(16)]
    return ClipReader(ShardSet.open(folder), **{**arguments, **changed})


def generator():
    return np.random.default_rng(0)


CLIP = encode(num_frames=20, height=32, width=48, fps=10)


def test_frames_and_captions(tmp_path):
    source = reader(tmp_path, [{"mp4": CLIP, "json": {"caption": "A dog!", "captions": ["Two dogs."]}}], transforms=[])
    clip = source.read(0, generator())
    assert clip.content.annotated == ["A dog!", "Two dogs."]
    assert clip.content.text == ["a dog", "two dogs"]
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


class Mark:
    """A transform that leaves a trace and the pixels as they are."""

    def __init__(self, seen, name):
        self.seen, self.name = seen, name

    def __call__(self, video, generator):
        self.seen.append(self.name)
        return video


@pytest.mark.parametrize("flip_except", [(), ("ssv2", "ssv1"), ("k710",)])
def test_clips_of_named_sources_keep_their_sides(tmp_path, flip_except):
    samples = [{"mp4": CLIP, "json": {"source": name}} for name in ("ssv2", "k710")] + [{"mp4": CLIP}]
    seen = []
    options = {"content": LabelReader(), "flip_except": flip_except}
    transforms = [Mark(seen, "before"), HorizontalFlip(1.0), Mark(seen, "after")]
    source = reader(tmp_path, samples, transforms=transforms, **options)
    plain = decode_video(CLIP, lambda *_: [4, 14]).frames
    for index, name in enumerate(("ssv2", "k710", None)):
        kept = name in flip_except
        assert torch.equal(source.read(index, generator()).video, plain if kept else plain.flip(-1)), name
    assert seen == ["before", "after"] * 3


def test_a_clip_needs_no_text_unless_its_content_does(tmp_path):
    samples = [{"mp4": CLIP}, {"mp4": CLIP, "json": {"class_index": 3}}, {"mp4": CLIP, "json": b"{"}, {"txt": "a dog"}]
    source = reader(tmp_path, samples, content=LabelReader())
    assert [source.read(index, generator()).content for index in (0, 1)] == [-1, 3]
    for index, reason in ((2, "json_invalid"), (3, "video_missing")):
        with pytest.raises(SampleError, match=reason):
            source.read(index, generator())

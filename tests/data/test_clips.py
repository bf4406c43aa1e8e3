"""Exact: a clip holds the frames, captions and size that were asked for, or says why there is none."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ivt2.data.clips import Clip, ClipReader, choose_caption
from ivt2.data.decode import decode_video
from ivt2.data.ledger import SampleError
from ivt2.data.sampling import middle
from ivt2.data.shards import ShardSet, ShardWriter
from ivt2.data.transforms import Resize
from tests.data.clips import encode


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
    clip = Clip(torch.zeros(1), ["A", "B", "C"], ["a", "b", "c"])
    drawn = {choose_caption(clip, "random", np.random.default_rng(seed)) for seed in range(40)}
    assert drawn == {"a", "b", "c"}
    assert choose_caption(clip, "first", generator()) == "a"

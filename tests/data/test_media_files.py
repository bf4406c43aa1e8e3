"""Exact: files come as they are, folders of pictures as clips of the same bytes. Oracle: Pillow."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from ivt2.data.annotations import Annotation, FrameFiles
from ivt2.data.decode import decode_video
from ivt2.data.ledger import SampleError
from ivt2.data.media_files import file_state, read_media
from tests.data.clips import picture


def jpeg(number, size=64, format_name="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(picture(number, size, size)).save(file, format_name, quality=95, subsampling=0, **options)
    return file.getvalue()


@pytest.fixture
def frames(tmp_path):
    """Five pictures in folder ``good``, and folders that cannot be packed."""
    root = tmp_path / "frames"
    bad = {"good": {}, "gap": {3: None}, "sizes": {2: jpeg(2, 32)}, "broken": {4: b"no picture"}, "cut": {1: b""}}
    for folder, instead in {**bad, "png": {1: jpeg(1, format_name="PNG")}}.items():
        (root / folder).mkdir(parents=True)
        for number in range(1, 6):
            content = instead.get(number, jpeg(number, progressive=number == 5))
            if content is not None:
                (root / folder / f"img_{number:05}.jpg").write_bytes(content)
    return root


def reason(file, root, **facts):
    """Why a file cannot be read."""
    with pytest.raises(SampleError) as error:
        read_media(Annotation(file=file, captions=("a",), **facts), str(root))
    return error.value.reason


def test_a_file_is_read_whole_with_its_type_and_nothing_outside_the_folder_is(tmp_path, monkeypatch):
    media = tmp_path / "media"
    (media / "dir.mp4").mkdir(parents=True)
    (media / "a.b.MP4").write_bytes(bytes(range(256)) * 20)
    (media / "c.exe").write_bytes(b"x")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    os.mkfifo(media / "pipe.mp4")
    expected = ("mp4", bytes(range(256)) * 20)
    assert read_media(Annotation(file="./a.b.MP4"), str(media)) == expected
    read = os.read
    monkeypatch.setattr(os, "read", lambda file, num_bytes: read(file, min(num_bytes, 1000)))
    assert read_media(Annotation(file="a.b.MP4"), str(media)) == expected
    reasons = {
        "../secret.mp4": "file_outside_media_root",
        "dir.mp4/../a.b.MP4": "file_outside_media_root",
        "/etc/passwd": "file_outside_media_root",
        "": "file_missing",
        "./": "file_missing",
        "absent.mp4": "file_missing",
        "a.b.MP4/c.mp4": "file_missing",
        "dir.mp4": "file_missing",
        "pipe.mp4": "file_missing",
        "c.exe": "file_type_unknown",
        "a.mp4\0.mp4": "file_unreadable",
        "x" * 5000 + ".mp4": "file_unreadable",
    }
    assert {file: reason(file, media) for file in reasons} == reasons
    monkeypatch.setattr("ivt2.data.media_files.MAX_MEDIA_BYTES", 5119)
    assert reason("a.b.MP4", media) == "file_too_large"


def test_the_state_of_a_file_says_whether_it_changed(tmp_path):
    file = tmp_path / "a"
    assert file_state(file) is None
    file.write_bytes(b"x")
    before = file_state(file)
    assert file_state(file) == before
    os.utime(file, ns=(0, before[0] + 1))
    assert file_state(file) == [before[0] + 1, 1]


def test_frame_folders_become_clips_without_a_change_of_their_bytes(frames):
    def clip(name, template="img_{:05}.jpg"):
        return {"file": name, "class_index": 7, "frames": FrameFiles(template, 5, 12.0)}

    reasons = {
        "gap": "file_missing",
        "sizes": "frame_sizes_differ",
        "broken": "frame_invalid",
        "cut": "frame_invalid",
        "png": "frame_invalid",
        "absent": "file_missing",
        ".": "file_missing",
        "../frames/good": "file_outside_media_root",
    }
    assert {name: reason(root=frames, **clip(name)) for name in reasons} == reasons
    assert reason(root=frames, **clip("good", "../good/img_{:05}.jpg")) == "file_outside_media_root"
    kind, video = read_media(Annotation(**clip("good")), str(frames))
    assert (kind, video) == read_media(Annotation(**clip("good")), str(frames))
    assert all(jpeg(number, progressive=number == 5) in video for number in range(1, 6))
    decoded = decode_video(video, lambda length, _: range(length)).frames.permute(0, 2, 3, 1).numpy()
    expected = np.stack([np.asarray(Image.open(frames / "good" / f"img_{n:05}.jpg")) for n in range(1, 6)])
    assert np.abs(decoded.astype(int) - expected).max() <= 4
    assert len(decode_video(video, lambda length, _: range(length), start_s=2 / 12).frames) == 3

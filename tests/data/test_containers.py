import pickle

import pytest

from ivt2.data.containers import DecodeError, Limits, check_complete, sniff
from tests.data.clips import encode, encode_audio, tone, wav


@pytest.mark.parametrize(
    ("container", "options"),
    [
        ("mov", {}),
        ("matroska", {"container": "matroska"}),
        ("matroska", {"container": "webm", "codec": "libvpx-vp9"}),
        ("avi", {"container": "avi", "codec": "mpeg4"}),
        ("mpegts", {"container": "mpegts"}),
        ("gif", {"container": "gif", "codec": "gif", "pixel_format": "rgb8"}),
    ],
)
def test_video_is_told_by_content_and_is_complete(container, options):
    data = encode(**options, num_frames=4)
    assert sniff(data) == container
    check_complete(data, container)


def test_audio_is_told_by_content():
    assert sniff(wav(tone(0.1))) == "wav"
    assert sniff(encode_audio("flac", "flac")) == "flac"
    assert sniff(encode_audio("libmp3lame", "mp3")) == "mp3"
    assert sniff(encode_audio("aac", "adts")) == "aac"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html></html>" * 9,
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile x.mp4\n",
        b"\x1f\x8b\x08" + bytes(99),
        b"RIFF\x10\x00\x00\x00WEBPxxxx",
        b"\x1a\x45\xdf\xa3" + bytes(99),
        b"v=0\r\nc=IN IP4 127.0.0.1\r\nm=video 5000 RTP/AVP 96\r\n",
        b"G" + bytes(187) + b"H" + bytes(187),
    ],
)
def test_anything_else_is_nothing(data):
    assert sniff(data) is None


@pytest.mark.parametrize(
    ("container", "options"),
    [("mov", {}), ("matroska", {"container": "matroska"}), ("avi", {"container": "avi", "codec": "mpeg4"})],
)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
def test_file_shorter_than_it_says_is_truncated(container, options, part):
    data = encode(**options)
    with pytest.raises(DecodeError) as caught:
        check_complete(data[: int(len(data) * part)], container)
    assert caught.value.reason == "truncated"


def test_rubbish_behind_a_complete_mp4_is_no_damage():
    data = encode() + b"\xff\xfe rubbish \x00\x01" * 9
    check_complete(data, "mov")


def test_box_that_does_not_advance_is_refused():
    with pytest.raises(DecodeError) as caught:
        check_complete(b"\x00\x00\x00\x04ftyp" + bytes(64), "mov")
    assert caught.value.reason == "corrupt"


def test_header_without_tracks_is_no_video():
    with pytest.raises(DecodeError) as caught:
        check_complete(b"\x00\x00\x00\x20ftypisom" + bytes(20), "mov")
    assert caught.value.reason == "not_video"


def test_limits_name_what_is_exceeded():
    limits = Limits(max_bytes=10, max_pixels=100, min_side=4, max_duration_s=5, max_frames=6)
    refusals = {
        "too_many_bytes": lambda: limits.check_bytes(bytes(11)),
        "too_large": lambda: limits.check_frame(11, 10),
        "too_small": lambda: limits.check_frame(3, 20),
        "too_long": lambda: limits.check_length(1, 5.1),
        "too_many_frames": lambda: limits.check_length(7, 1.0),
    }
    for reason, refuse in refusals.items():
        with pytest.raises(DecodeError) as caught:
            refuse()
        assert caught.value.reason == reason
    limits.check_bytes(bytes(10))
    limits.check_frame(10, 10)
    limits.check_length(6, 5.0)


def test_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(DecodeError("corrupt", "why")))
    assert (error.reason, error.detail, str(error)) == ("corrupt", "why", "corrupt: why")


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7])
def test_checksum_of_matroska_finds_one_flipped_bit(at):
    data = bytearray(encode(container="matroska", num_frames=40))
    data[int(len(data) * at)] ^= 1
    with pytest.raises(DecodeError) as caught:
        check_complete(bytes(data), "matroska")
    assert caught.value.reason == "corrupt"


def test_live_recording_of_unknown_length_is_accepted():
    data = encode(container="matroska", container_options={"live": "1"})
    segment = data.index(b"\x18\x53\x80\x67")
    assert data[segment + 4 : segment + 12] == b"\x01" + b"\xff" * 7
    check_complete(data, "matroska")

import itertools
import os
import subprocess
import sys
from io import BytesIO
from typing import get_args

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ivt2.data import decode_decord, decode_pyav
from ivt2.data.decode import DecodeError, Limits, Reason, available_backends, decode_image, decode_video
from ivt2.errors import InputError
from tests.data.clips import all_frames, encode, encode_audio, faststart, giant, picture, with_edit_list

# What every installed back end must read alike; decord says itself where it does not find the right frames.
EVERYWHERE = {
    "h264": {"num_frames": 30},
    "gop250": {"gop": 250, "num_frames": 60},
    "no_b_frames": {"options": {"bf": "0"}},
    "b_frames": {"options": {"bf": "3", "b-pyramid": "normal"}, "num_frames": 40},
    "variable_rate": {"ticks": [0, 1, 2, 7, 8, 20, 21, 22, 30, 31, 33, 40, 50, 51, 52, 60]},
    "rotated_90": {"rotation": 90, "width": 96},
    "rotated_180": {"rotation": 180, "width": 96},
    "rotated_270": {"rotation": -90, "width": 96},
    "odd_size": {"height": 61, "width": 93, "pixel_format": "yuv444p", "options": {"profile": "high444"}},
    "gray": {"pixel_format": "gray"},
    "full_range": {"pixel_format": "yuvj420p"},
    "bt709": {"options": {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}},
    "fragments": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "mkv": {"container": "matroska"},
    "mpeg4": {"codec": "mpeg4"},
    "vp9": {"codec": "libvpx-vp9", "container": "webm"},
    "hevc_closed": {"codec": "libx265", "options": {"x265-params": "open-gop=0:log-level=none"}},
    "sound": {"audio_codec": "aac"},
    "one_frame": {"num_frames": 1},
    "two_frames": {"num_frames": 2},
}
PYAV_ONLY = {
    "open_gop": {"options": {"x264-params": "open-gop=1:keyint=10:bframes=3"}, "num_frames": 60},
    "hevc_open": {"codec": "libx265", "num_frames": 40},
    "mpeg4_b_frames": {"codec": "mpeg4", "options": {"bf": "2"}, "num_frames": 40},
    "avi": {"codec": "mpeg4", "container": "avi", "num_frames": 30},
    "avi_b_frames": {"codec": "mpeg4", "container": "avi", "options": {"bf": "2"}, "num_frames": 30},
    "avi_h264": {"container": "avi", "num_frames": 30},
    "transport_stream": {"container": "mpegts", "num_frames": 30},
    "ten_bits": {"pixel_format": "yuv420p10le"},
    "vp8_hidden_frames": {
        "codec": "libvpx",
        "container": "webm",
        "num_frames": 40,
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16"},
    },
    "gif": {"codec": "gif", "container": "gif", "pixel_format": "rgb8"},
    "mjpeg": {"codec": "mjpeg", "container": "avi", "pixel_format": "yuvj420p"},
}


def pixels(data, choose=lambda num_frames, fps: range(num_frames), **options):
    return decode_video(data, choose, **options).frames.permute(0, 2, 3, 1).numpy()


def reason_of(data, choose=lambda num_frames, fps: range(num_frames), **options):
    with pytest.raises(DecodeError) as caught:
        decode_video(data, choose, **options)
    assert caught.value.reason in get_args(Reason)
    return caught.value.reason


def never(num_frames, fps):
    raise AssertionError("asked for frames although the header should have been refused")


def check_frames(options, backend):
    data = encode(**options)
    expected = np.rot90(all_frames(data), options.get("rotation", 0) // 90 % 4, axes=(1, 2))
    video = decode_video(data, lambda num_frames, fps: range(num_frames), backend=backend)
    assert video.num_frames == len(expected) == options.get("num_frames", 16)
    np.testing.assert_array_equal(video.frames.permute(0, 2, 3, 1).numpy(), expected)
    for seed in range(12):
        generator = np.random.default_rng(seed)
        chosen = generator.choice(len(expected), generator.integers(1, min(len(expected), 8) + 1), replace=False)
        np.testing.assert_array_equal(
            pixels(data, lambda _, __, chosen=chosen: chosen, backend=backend), expected[chosen]
        )
    return video


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("name", EVERYWHERE)
def test_every_backend_gives_the_frames_of_sequential_decoding(name, backend):
    video = check_frames(EVERYWHERE[name], backend)
    assert video.backend == backend


@pytest.mark.parametrize("name", PYAV_ONLY)
def test_everything_else_is_read_by_pyav(name):
    video = check_frames(PYAV_ONLY[name], "auto")
    assert video.backend == "pyav"


def test_av1():
    policy = os.sched_getscheduler(0)
    try:
        data = encode(codec="libsvtav1", options={"svtav1-params": "lp=1"})
    except av.codec.codec.UnknownCodecError:
        pytest.skip("this PyAV cannot encode AV1")
    assert os.sched_getscheduler(0) == policy, "all that this process starts later would go before all others"
    np.testing.assert_array_equal(pixels(data), all_frames(data))


def test_frames_are_the_pictures_that_were_encoded():
    decoded = pixels(encode(options={"crf": "1"}))
    for number, frame in enumerate(decoded):
        assert np.abs(frame.astype(int) - picture(number).astype(int)).mean() < 4


def test_h264_frames_that_no_other_needs_are_passed_over():
    clean = encode(num_frames=30, gop=15, options={"bf": "3", "b-pyramid": "normal", "threads": "1"})  # one slice each
    frames, damaged, needed = all_frames(clean), bytearray(clean), []
    with av.open(BytesIO(clean)) as opened:
        shown = sorted(packet.pts for packet in opened.demux(video=0) if packet.size)
        opened.seek(0)
        for packet in opened.demux(video=0):
            if packet.is_keyframe or (packet.size and bytes(packet)[4] >> 5):  # its importance
                needed.append(shown.index(packet.pts))
            elif packet.size:
                low, high = packet.pos + 16, packet.pos + packet.size  # behind that header
                damaged[low:high] = np.random.default_rng(0).bytes(high - low)
    needed.sort()
    assert 8 < len(needed) < 22
    np.testing.assert_array_equal(pixels(bytes(damaged), lambda *_: needed), frames[needed])
    np.testing.assert_array_equal(pixels(bytes(damaged), lambda *_: [needed[-1]]), frames[needed[-1:]])
    assert reason_of(bytes(damaged)) == "corrupt"


B_FRAMES = [{"b-pyramid": "none"}, {"b-pyramid": "normal"}, {"x264-params": "open-gop=1"}, {"refs": "5"}]


@pytest.mark.parametrize("options", B_FRAMES, ids=str)
def test_passing_over_needs_no_second_attempt(options, monkeypatch):
    data = encode(num_frames=14, gop=8, options={"bf": "3", "b_strategy": "0", **options})
    frames = all_frames(data)
    monkeypatch.setattr(decode_pyav, "coded_frames", None)
    chosen = [[i] for i in range(14)] + [[i, j] for i in range(14) for j in range(i + 1, 14, 3)] + [[*range(14)]]
    for numbers in chosen:
        np.testing.assert_array_equal(pixels(data, lambda *_, numbers=numbers: numbers), frames[numbers])


def test_when_passing_over_fails_every_frame_is_decoded(monkeypatch):
    data, seek_frames, tried = encode(), decode_pyav._seek_frames, []

    def failing(*arguments, sparing=False):
        tried.append(sparing)
        for number, frame in enumerate(seek_frames(*arguments, sparing=sparing)):
            if sparing and number == 1:
                raise DecodeError("corrupt", "not what it says")
            yield frame

    monkeypatch.setattr(decode_pyav, "_seek_frames", failing)
    np.testing.assert_array_equal(pixels(data, lambda *_: [3, 9, 12]), all_frames(data)[[3, 9, 12]])
    assert tried == [True, False]


def test_layout_is_a_view_with_channels_last_in_memory():
    frames = decode_video(encode(width=96), lambda num_frames, fps: [0, 3]).frames
    assert frames.shape == (2, 3, 64, 96)
    assert frames.dtype == torch.uint8
    assert frames.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", available_backends())
def test_frames_come_in_the_order_asked_for_and_may_repeat(backend):
    data = encode()
    np.testing.assert_array_equal(
        pixels(data, lambda _, __: [7, 2, 2, 15], backend=backend), all_frames(data)[[7, 2, 2, 15]]
    )


@pytest.mark.parametrize("chosen", [[], [-1], [16], [0, 99]])
def test_frame_that_is_not_there_is_the_callers_mistake(chosen):
    with pytest.raises(IndexError, match="of 16"):
        decode_video(encode(), lambda num_frames, fps: chosen)


def test_facts_of_the_video():
    video = decode_video(encode(num_frames=30, fps=10), lambda num_frames, fps: [num_frames - 1, int(fps)])
    assert (video.num_frames, video.fps) == (30, 10.0)
    assert video.duration_s == pytest.approx(3.0)


@pytest.mark.parametrize("backend", available_backends())
def test_part_of_a_video(backend):
    data = encode(num_frames=30, fps=10)
    part = decode_video(data, lambda num_frames, fps: range(num_frames), backend=backend, start_s=1.0, end_s=1.5)
    assert part.num_frames == 5
    assert part.duration_s == pytest.approx(0.5)
    np.testing.assert_array_equal(part.frames.permute(0, 2, 3, 1).numpy(), all_frames(data)[10:15])
    assert reason_of(data, backend=backend, start_s=3.0) == "empty"


def test_part_of_a_variable_rate_video_goes_by_time():
    ticks = [0, 1, 2, 7, 8, 20, 21, 22, 30, 31, 33, 40, 50, 51, 52, 60]
    data = encode(ticks=ticks)
    part = decode_video(data, lambda num_frames, fps: range(num_frames), start_s=8 / 25, end_s=31 / 25)
    np.testing.assert_array_equal(part.frames.permute(0, 2, 3, 1).numpy(), all_frames(data)[4:9])


def test_numbers_can_divide_the_time_instead_of_the_frames():
    ticks = [0, 1, 2, 7, 8, 20, 21, 22, 30, 31, 33, 40, 50, 51, 52, 60]
    data = encode(ticks=ticks)
    video = decode_video(data, lambda num_frames, fps: range(num_frames), by_time=True)
    last = 25 / video.fps  # ticks for which the last frame is taken to stay
    shown = [max(i for i in range(16) if ticks[i] <= (part + 0.5) * (60 + last) / 16) for part in range(16)]
    assert len(set(shown)) < 12
    np.testing.assert_array_equal(video.frames.permute(0, 2, 3, 1).numpy(), all_frames(data)[shown])
    for options in ({"fps": 10}, {"fps": 30, "container": "matroska"}, {"container": "avi", "codec": "mpeg4"}):
        even = encode(num_frames=40, **options)
        np.testing.assert_array_equal(pixels(even, by_time=True), all_frames(even))


def test_edit_list_hides_frames():
    whole = encode(options={"bf": "0"}, num_frames=30, gop=12)
    data = with_edit_list(whole, 5 / 25)
    video = decode_video(data, lambda num_frames, fps: range(num_frames))
    assert (video.num_frames, video.backend) == (25, "pyav")
    np.testing.assert_array_equal(video.frames.permute(0, 2, 3, 1).numpy(), all_frames(whole)[5:])
    np.testing.assert_array_equal(pixels(data, lambda _, __: [9, 20]), all_frames(whole)[[14, 25]])


@pytest.mark.skipif("decord" not in available_backends(), reason="decord is not installed")
def test_decord_would_count_what_an_edit_list_hides():
    data = with_edit_list(encode(options={"bf": "0"}, num_frames=30), 5 / 25)
    assert reason_of(data, backend="decord") == "unsupported_codec"


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"bf": "0", "sc_threshold": "0"}),
        ("mpeg4", {"bf": "2"}),  # its decoder shows what precedes the key frame, damaged
        (
            "mpeg2video",
            {"bf": "2", "sc_threshold": "1000000000"},
        ),  # stores two frames behind a key frame, shows them before
    ],
)
def test_transport_stream_cut_in_the_middle_begins_at_its_first_key_frame(codec, options):
    whole = encode(codec=codec, container="mpegts", num_frames=40, gop=9, options=options)
    frames = all_frames(whole)
    data = whole[len(whole) // 188 // 3 * 188 :]
    decoded = pixels(data)
    assert 10 <= len(decoded) < 40
    np.testing.assert_array_equal(decoded, frames[-len(decoded) :])
    np.testing.assert_array_equal(pixels(data, lambda _, __: [0, 5]), frames[-len(decoded) :][[0, 5]])


def test_no_other_demultiplexer_is_tried():
    with pytest.raises(DecodeError), decode_pyav.open_container(encode(container="matroska"), "avi"):
        pass


def test_backend_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(decode_decord, "load_decord", lambda: None)
    with pytest.raises(InputError, match="decord is not installed"):
        decode_video(encode(), never, backend="decord")
    assert decode_video(encode(), lambda num_frames, fps: [0]).backend == "pyav"


@pytest.mark.skipif("decord" not in available_backends(), reason="decord is not installed")
@pytest.mark.parametrize("name", [name for name in PYAV_ONLY if name not in {"gif", "vp8_hidden_frames"}])
def test_decord_refuses_what_it_does_not_read_exactly(name):
    assert reason_of(encode(**PYAV_ONLY[name]), backend="decord") == "unsupported_codec"


@pytest.mark.skipif("decord" not in available_backends(), reason="decord is not installed")
def test_decord_that_counts_other_frames_is_refused(monkeypatch):
    original = decode_decord.load_decord().VideoReader.__len__
    monkeypatch.setattr(decode_decord.load_decord().VideoReader, "__len__", lambda self: original(self) + 1)
    assert reason_of(encode(), backend="decord") == "corrupt"


def test_codec_libraries_are_loaded_on_first_use():
    program = "import sys, ivt2.data.decode, ivt2.data.audio; print({'av', 'decord', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        np.random.default_rng(0).bytes(200_000),
        b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41",
        b"<!DOCTYPE html><html><body>404</body></html>" * 50,
        b"\x1f\x8b\x08" + bytes(500),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"<?xml version='1.0'?><MPD><Period/></MPD>",
    ],
    ids=["empty", "byte", "random", "ftyp", "html", "gzip", "m3u8-file", "m3u8-http", "ffconcat", "dash"],
)
def test_no_video(data):
    assert reason_of(data, never) == "not_video"


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_truncated(part, tmp_path):
    moov_at_end, moov_first = encode(num_frames=60), faststart(tmp_path)
    for data in (moov_at_end, moov_first, encode(container="matroska"), encode(container="avi", codec="mpeg4")):
        assert reason_of(data[: int(len(data) * part)], never) == "truncated"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"codec": "mpeg4"},
        {"codec": "mpeg4", "container": "avi"},
        {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
        {"codec": "libvpx-vp9", "container": "webm"},
    ],
)
def test_middle_overwritten(options):
    data = bytearray(encode(num_frames=40, height=128, width=128, **options))
    low, high = len(data) * 35 // 100, len(data) * 65 // 100
    data[low:high] = np.random.default_rng(0).bytes(high - low)
    assert reason_of(bytes(data)) in {"corrupt", "truncated"}


def test_few_flipped_bits_that_the_decoder_notices_are_not_hidden():
    clean = encode(num_frames=32, height=128, width=128, options={"bf": "0"})
    caught = 0
    for seed in range(10):
        generator = np.random.default_rng(seed)
        data = bytearray(clean)
        for at in generator.integers(len(data) // 5, len(data) * 4 // 5, 5):
            data[at] ^= 1 << int(generator.integers(8))
        try:
            pixels(bytes(data))
        except DecodeError as error:
            caught += error.reason == "corrupt"
    assert caught >= 9


def test_damage_anywhere_gives_frames_or_a_reason():
    clips = [encode(num_frames=12, audio_codec="aac"), encode(num_frames=12, container="matroska")]
    clips += [encode(num_frames=12, container="avi", codec="mpeg4"), encode(num_frames=12, container="mpegts")]
    reasons = set()
    for data, seed in itertools.product(clips, range(25)):
        generator = np.random.default_rng(seed)
        damaged = bytearray(data)
        for at in generator.integers(0, len(data), 40):
            damaged[at] ^= 1 << int(generator.integers(8))
        try:
            frames = decode_video(bytes(damaged), lambda num_frames, fps: range(num_frames)).frames
            assert frames.dtype == torch.uint8
        except DecodeError as error:
            reasons.add(error.reason)
    assert reasons <= set(get_args(Reason))
    assert "corrupt" in reasons


def test_header_flips_give_frames_or_a_reason():
    data = encode(num_frames=12)
    moov = data.index(b"moov")
    outcomes = set()
    for seed in range(60):
        generator = np.random.default_rng(seed)
        damaged = bytearray(data)
        for at in generator.integers(moov, len(data), 8):
            damaged[at] ^= 1 << int(generator.integers(8))
        try:
            outcomes.add(f"{decode_video(bytes(damaged), lambda num_frames, fps: [num_frames - 1]).num_frames} frames")
        except DecodeError as error:
            outcomes.add(error.reason)
    assert outcomes & set(get_args(Reason))
    assert "0 frames" not in outcomes


def test_sound_only():
    assert reason_of(encode_audio("aac", "mp4"), never) == "no_video_stream"


@pytest.mark.parametrize(("codec", "container"), [("ffv1", "matroska"), ("mjpeg", "avi")])
def test_giant_frames_are_refused_by_header(codec, container):
    assert reason_of(giant(codec, container), never) == "too_large"


def test_limits_of_the_header():
    assert reason_of(encode(fps=1, ticks=[0, 8000], num_frames=2), never) == "too_long"
    assert reason_of(encode(num_frames=20), never, limits=Limits(max_frames=19)) == "too_many_frames"
    assert (
        reason_of(encode(num_frames=20, container="mpegts"), never, limits=Limits(max_frames=19)) == "too_many_frames"
    )
    assert reason_of(encode(), never, limits=Limits(max_bytes=999)) == "too_many_bytes"
    assert reason_of(encode(height=2, width=2), never) == "too_small"
    assert pixels(encode(num_frames=20), limits=Limits(max_frames=20)).shape[0] == 20


def test_unknown_codec_is_named():
    data = encode(container="avi", codec="mpeg4").replace(b"FMP4", b"ZZZZ")
    assert reason_of(data, never) in {"unsupported_codec", "corrupt"}


def image_bytes(image, **options):
    file = BytesIO()
    image.save(file, **options)
    return file.getvalue()


def test_png_is_exact():
    decoded = decode_image(image_bytes(Image.fromarray(picture(3, 40, 50)), format="PNG"))
    assert decoded.shape == (1, 3, 40, 50)
    np.testing.assert_array_equal(decoded[0].permute(1, 2, 0).numpy(), picture(3, 40, 50))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    decoded = decode_image(image_bytes(Image.fromarray(picture(3, 40, 50)).convert(mode), format=kind))
    assert decoded.shape == (1, 3, 40, 50)
    assert decoded.float().std() > 20


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    data = image_bytes(Image.fromarray(picture(3, 40, 50)), format="PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data)[0].permute(1, 2, 0).numpy(), np.rot90(picture(3, 40, 50), -1))


def test_images_that_cannot_be_used():
    jpeg = image_bytes(Image.fromarray(picture(0)), format="JPEG")
    png = image_bytes(Image.fromarray(picture(0)), format="PNG")
    cases = [
        (b"", "not_image", {}),
        (b"<html>", "not_image", {}),
        (encode(), "not_image", {}),
        (jpeg[: len(jpeg) // 2], "truncated", {}),
        (png[: len(png) // 2], "truncated", {}),
        (jpeg, "too_large", {"limits": Limits(max_pixels=64 * 63)}),
        (jpeg, "too_small", {"limits": Limits(min_side=65)}),
        (jpeg, "too_many_bytes", {"limits": Limits(max_bytes=100)}),
        (image_bytes(Image.new("L", (16_000, 16_000)), format="PNG"), "too_large", {}),
    ]
    for data, reason, options in cases:
        with pytest.raises(DecodeError) as caught:
            decode_image(data, **options)
        assert caught.value.reason == reason

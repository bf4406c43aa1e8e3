import itertools
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from PIL import Image

from ivt2.data.audio import decode_audio
from ivt2.data.containers import DecodeError, Limits, sniff
from ivt2.data.decode import available_backends, decode_video
from ivt2.data.decode_arrays import open_video
from ivt2.data.ledger import SampleError
from ivt2.data.transcoding import VideoPreset, encode_sound, encode_video
from ivt2.errors import InputError
from tests.data import clips
from tests.data.clips import encode, giant, tone, wav, with_edit_list

FINE = VideoPreset(crf=2)
TICKS = [0, 1, 2, 7, 8, 20, 21, 22, 30, 31, 33, 40, 50, 51, 52, 60]
BT709 = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}
MOVING = {
    "b_frames": {"options": {"bf": "3", "b-pyramid": "normal"}, "num_frames": 30},
    "open_gop": {"options": {"x264-params": "open-gop=1:keyint=10:bframes=3"}, "num_frames": 30},
    "variable_rate": {"ticks": TICKS, "fps": 30},
    "variable_rate_mkv": {"ticks": TICKS, "container": "matroska"},
    "avi_without_times": {"codec": "mpeg4", "container": "avi", "options": {"bf": "2"}, "num_frames": 30},
    "transport_stream": {"container": "mpegts"},
    "frame_folder": {"codec": "mjpeg", "container": "matroska", "pixel_format": "yuvj420p"},
    "hidden_frames": {
        "codec": "libvpx",
        "container": "webm",
        "num_frames": 30,
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16"},
    },
    "gif": {"codec": "gif", "container": "gif", "pixel_format": "rgb8"},
    "rotated_90": {"rotation": 90, "width": 96},
    "rotated_180": {"rotation": 180, "width": 96},
    "rotated_270": {"rotation": -90, "width": 96},
    "odd_size": {"height": 61, "width": 93, "pixel_format": "yuv444p"},
    "one_frame": {"num_frames": 1},
}
COLOURED = {
    "plain": {},
    "bt709": {"options": BT709},
    "full_range": {"pixel_format": "yuvj420p"},
    "full_range_bt709": {"pixel_format": "yuvj420p", "options": BT709},
    "full_chroma": {"pixel_format": "yuv444p", "options": BT709},
    "ten_bits": {
        "pixel_format": "yuv420p10le",
        "options": {"colorspace": "bt2020nc", "color_primaries": "bt2020", "color_trc": "smpte2084"},
    },
    "rgb": {"codec": "libx264rgb", "pixel_format": "rgb24"},
    "alpha": {"codec": "ffv1", "pixel_format": "bgra"},
    "gray": {"codec": "ffv1", "pixel_format": "gray"},
    "gray_of_ten_bits": {"codec": "ffv1", "pixel_format": "gray10le"},
    "mpeg4": {"codec": "mpeg4", "options": {"qmax": "1", "qmin": "1"}},
    "motion_jpeg": {"codec": "mjpeg", "pixel_format": "yuvj422p", "options": {"qmax": "1", "qmin": "1"}},
}


def frames(data, **span):
    return decode_video(data, lambda num_frames, fps: range(num_frames), **span).frames.permute(0, 2, 3, 1).numpy()


def resized(video, height, width):
    """What PIL makes of the frames."""
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), Image.BICUBIC)) for frame in video])


def index_of(data):
    with open_video(data, Limits()) as (_, index):
        return index


def brightness(video):
    return video @ np.array([0.299, 0.587, 0.114])


def length_s(data):
    """Length as the header states it."""
    with av.open(BytesIO(data)) as opened:
        stream = opened.streams.video[0]
        return float(stream.duration * stream.time_base)


def whole_length_s(data):
    """Length of all tracks as the header states it."""
    with av.open(BytesIO(data)) as opened:
        return opened.duration / 1_000_000


def picture_types(data, skip_frame="DEFAULT"):
    """Letters of the frames that a decoder shows."""
    with av.open(BytesIO(data)) as opened:
        opened.streams.video[0].codec_context.skip_frame = skip_frame
        return "".join(av.video.frame.PictureType(frame.pict_type).name for frame in opened.decode(video=0))


def change(first, second):
    return np.abs(brightness(first) - brightness(second)).mean()


def patches(number, height=64, width=64):
    """Squares of 16 pixels, each of one colour."""
    colours = np.random.default_rng(number).integers(0, 256, (height // 16, width // 16, 3))
    return np.kron(colours, np.ones((16, 16, 1))).astype(np.uint8)


def patch_centres(video):
    return video.reshape(len(video), video.shape[1] // 16, 16, -1, 16, 3)[:, :, 6:10, :, 6:10].astype(int)


def nearest(video, source):
    """Which frames of the source these are."""
    return [int(np.argmin([change(frame, other) for other in source])) for frame in video]


def reason_of(data, preset=FINE, **span):
    with pytest.raises((DecodeError, SampleError)) as caught:
        encode_video(data, preset, **span)
    return caught.value.reason


@pytest.mark.parametrize("name", MOVING)
def test_number_order_and_times_of_frames_stay(name):
    data = encode(**MOVING[name])
    encoded = encode_video(data, FINE)
    source, new = index_of(data), index_of(encoded.data)
    np.testing.assert_allclose(new.times_s, source.times_s, rtol=0, atol=1e-9)
    assert not new.trimmed
    assert encoded.duration_s == pytest.approx(source.duration_s)
    assert length_s(encoded.data) == pytest.approx(source.duration_s, abs=0.002)
    expected, pixels = frames(data), frames(encoded.data)
    if name == "odd_size":
        expected = resized(expected, 60, 92)
    assert pixels.shape == expected.shape
    assert max(change(pixels[i], expected[i]) for i in range(len(expected))) < 2.0


@pytest.mark.parametrize("name", COLOURED)
def test_colours_stay(name, monkeypatch):
    monkeypatch.setattr(clips, "picture", patches)
    fine = {} if COLOURED[name].get("codec", "libx264") != "libx264" else {"crf": "2"}
    options = {"container": "matroska", "num_frames": 3, **COLOURED[name]}
    data = encode(**{**options, "options": {**fine, **options.get("options", {})}})
    encoded = encode_video(data, FINE).data
    expected, pixels = frames(data), frames(encoded)
    full_range = name == "motion_jpeg" or name.startswith("full_range")
    assert index_of(encoded).pixel_format == ("yuvj420p" if full_range else "yuv420p")
    np.testing.assert_allclose(patch_centres(pixels), patch_centres(expected), rtol=0, atol=6)
    assert np.abs(patch_centres(pixels) - patch_centres(expected)).mean() < 1.2


@pytest.mark.parametrize("backend", available_backends())
def test_every_backend_reads_the_same_frames(backend):
    data = encode_video(encode(num_frames=40, width=96), VideoPreset(gop=7)).data
    np.testing.assert_array_equal(frames(data, backend=backend), frames(data))


def test_format_is_cheap_to_decode():
    data = encode_video(encode(num_frames=40, audio_codec="aac"), VideoPreset(gop=7)).data
    assert sniff(data) == "mov"
    assert data.index(b"moov") < data.index(b"mdat")
    index = index_of(data)
    assert (index.codec, index.pixel_format, index.open_gop) == ("h264", "yuv420p", False)
    assert [index.timestamps.index(key) for key in index.keys] == list(range(0, 40, 7))
    with av.open(BytesIO(data)) as opened:
        assert len(opened.streams) == 1
    assert picture_types(data) == 5 * "IBBBPBP" + "IBBBP"
    assert picture_types(data, skip_frame="NONREF") == 5 * "IPP" + "IP"


def test_without_b_frames_frames_are_stored_as_they_are_shown():
    data = encode_video(encode(num_frames=20), VideoPreset(gop=7, b_frames=0)).data
    with av.open(BytesIO(data)) as opened:
        packets = [packet for packet in opened.demux(video=0) if packet.size]
    assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
    assert picture_types(data) == 2 * "IPPPPPP" + "IPPPPP"


@pytest.mark.parametrize("b_frames", [1, 3])
def test_any_frame_can_be_sought_however_long_the_pauses_are(b_frames):
    ticks = [0, 1, 2, 3, 300, 301, 303, 304, 344, 345, 346, 900, 901, 940, 941, 942, 943]
    data = encode_video(encode(num_frames=17, ticks=ticks, fps=30), VideoPreset(gop=5, b_frames=b_frames)).data
    every = frames(data)
    assert index_of(data).times_s == pytest.approx([tick / 30 for tick in ticks])
    for number in range(17):
        np.testing.assert_array_equal(
            decode_video(data, lambda *_, i=number: [i]).frames.permute(0, 2, 3, 1)[0], every[number]
        )


def test_header_states_the_length_of_a_variable_rate():
    data = encode(num_frames=16, ticks=TICKS, fps=30)
    assert whole_length_s(encode_video(data, FINE).data) == pytest.approx(index_of(data).duration_s, abs=0.002)


def test_key_frames_do_not_follow_cuts_nor_those_of_the_source():
    data = encode_video(encode(gop=1, num_frames=20), VideoPreset(gop=10)).data
    assert len(index_of(data).keys) == 2


def test_equal_input_gives_equal_bytes():
    data = encode(num_frames=30, width=96)
    first = encode_video(data, VideoPreset())
    assert first == encode_video(data, VideoPreset())
    assert b"Lavf" not in first.data + encode_sound(tone(0.1), 16_000)  # no version of a library
    for option in (b" threads=1 ", b" mbtree=0 "):  # the others do not always show in so few frames
        assert option in first.data
    assert encode_sound(tone(1.0), 16_000) == encode_sound(tone(1.0), 16_000)


@pytest.mark.parametrize(
    ("short_side", "source", "expected"),
    [
        (256, (360, 640), (256, 456)),
        (256, (640, 360), (456, 256)),
        (256, (1080, 1920), (256, 456)),
        (256, (256, 340), (256, 340)),
        (256, (120, 161), (120, 160)),
        (256, (257, 257), (256, 256)),
        (224, (480, 640), (224, 298)),
        (16, (8, 9), (8, 8)),
        (16, (16, 4096), (16, 4096)),
    ],
)
def test_size(short_side, source, expected):
    assert VideoPreset(short_side=short_side).size(*source) == expected


def test_scaled_frames_are_those_of_another_library():
    data = encode(height=120, width=160, num_frames=4, options={"crf": "2"})
    pixels = frames(encode_video(data, VideoPreset(short_side=48, crf=2)).data)
    expected = resized(frames(data), 48, 64)
    error = ((brightness(pixels) - brightness(expected)) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 40


def test_frames_that_an_edit_list_hides_are_left_out():
    data = with_edit_list(encode(num_frames=24, options={"bf": "0"}), 10 / 25)
    pixels = frames(encode_video(data, FINE).data)
    assert len(pixels) == 14
    assert nearest(pixels, frames(encode(num_frames=24, options={"bf": "0"}))) == list(range(10, 24))


@pytest.mark.parametrize(("max_fps", "ticks"), [(12.0, None), (10.0, None), (5.0, TICKS), (1.0, None)])
def test_max_fps_keeps_the_frames_on_the_screen_at_regular_moments(max_fps, ticks):
    data = encode(num_frames=16 if ticks else 50, ticks=ticks, options={"bf": "0"})
    times_s = index_of(data).times_s
    expected = []
    for count in itertools.count():
        moment = Fraction(count) / Fraction(max_fps)
        if moment > times_s[-1] + 1e-9:
            break
        shown = max(i for i, time in enumerate(times_s) if time <= moment + Fraction(1, 10**9))
        if shown not in expected:
            expected.append(shown)
    encoded = encode_video(data, VideoPreset(crf=2, max_fps=max_fps))
    assert nearest(frames(encoded.data), frames(data)) == expected
    new = index_of(encoded.data)
    np.testing.assert_allclose(new.times_s, times_s[expected], atol=1e-9)
    assert length_s(encoded.data) == pytest.approx(index_of(data).duration_s, abs=0.001)


def test_slower_video_keeps_all_frames():
    data = encode(num_frames=10, ticks=[0, 1, 2, 10, 20, 30, 40, 41, 50, 60])
    assert index_of(encode_video(data, VideoPreset(max_fps=10.0)).data).num_frames == 10


@pytest.mark.parametrize(
    "options",
    [{}, {"ticks": [2 * i + (i % 3 == 0) for i in range(40)]}, {"codec": "mpeg4", "container": "avi"}],
    ids=["constant", "variable", "avi"],
)
@pytest.mark.parametrize(("start_s", "end_s"), [(0.4, 1.0), (0.41, 0.99), (None, 0.3), (1.2, None), (0.5, 99.0)])
def test_part_has_the_frames_that_the_reader_would_choose(options, start_s, end_s):
    data = encode(num_frames=40, gop=8, **options)
    expected = frames(data, start_s=start_s, end_s=end_s)
    encoded = encode_video(data, FINE, start_s=start_s, end_s=end_s)
    pixels = frames(encoded.data)
    assert pixels.shape == expected.shape
    assert nearest(pixels, frames(data)) == nearest(expected, frames(data))
    assert index_of(encoded.data).timestamps[0] == 0
    times_s = index_of(data).times_s
    first = int(np.searchsorted(times_s, (start_s or 0.0) - 1e-6))
    np.testing.assert_allclose(
        index_of(encoded.data).times_s, times_s[first : first + len(expected)] - times_s[first], atol=1e-9
    )


def test_part_beyond_the_clip():
    data = encode(num_frames=25, ticks=[*range(24), 48])
    assert reason_of(data, start_s=60.0) == "segment_outside"
    assert reason_of(data, start_s=index_of(data).duration_s) == "segment_outside"
    assert reason_of(data, start_s=1.2, end_s=1.4) == "empty"  # between two frames


def test_damage_anywhere_is_found():
    data = bytearray(encode(num_frames=40))
    for place in np.random.default_rng(0).integers(600, 6000, 300):
        data[place] ^= 0xFF
    assert reason_of(bytes(data)) == "corrupt"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"<html>" * 50, "not_video"),
        (lambda: encode(num_frames=4)[:-100], "truncated"),
        (lambda: giant("mjpeg", "avi"), "too_large"),
        (lambda: wav(tone(0.1)), "not_video"),
        (lambda: encode(codec="ffv1", container="matroska", num_frames=1, height=8, width=16_800), "not_encodable"),
    ],
    ids=["html", "truncated", "giant", "sound", "too_wide"],
)
def test_refused(make, reason):
    assert reason_of(make()) == reason


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"short_side": 255}, "short_side=255: give an even number"),
        ({"short_side": 8}, "short_side=8"),
        ({"gop": 0}, "gop=0"),
        ({"b_frames": 17}, "b_frames=17"),
        ({"crf": 0}, "crf=0"),
        ({"crf": 52}, "crf=52"),
        ({"max_fps": 0.0}, "max_fps=0.0: give a positive number"),
        ({"max_fps": float("nan")}, "max_fps=nan"),
        ({"speed": "quick"}, "speed=quick: use one of ultrafast, superfast"),
    ],
)
def test_impossible_presets_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        VideoPreset(**values)


@pytest.mark.parametrize("num_samples", [1, 4095, 4096, 4097, 40_000])
def test_sound_is_kept_to_half_a_step_of_16_bits(num_samples):
    samples = np.random.default_rng(0).uniform(-0.99, 0.99, num_samples).astype(np.float32)
    data = encode_sound(samples, 16_000)
    assert sniff(data) == "flac"
    np.testing.assert_allclose(decode_audio(data), samples, rtol=0, atol=0.5001 / 2**15)


def test_loud_sound_is_clipped():
    decoded = decode_audio(encode_sound(np.array([1.5, 1.0, -1.0, -1.5] * 100, dtype=np.float32), 16_000)).numpy()
    np.testing.assert_allclose(decoded[:4], [1.0, 1.0, -1.0, -1.0], atol=1 / 2**15)

"""Bad input by number: files of media and captions, what makes each, and what may become of it.

Made elsewhere: shards (51 to 65) in bad_shards.py, paths (35, 37, 38, 39) in test_bad_media.py. Not made here: 15 as it
stands (216,000 frames take minutes to encode: a file that claims 8000 s stands for it, and the cap on frames is tested
in test_decode.py); 50, collections of files that crashed decoders (they must be downloaded: files damaged at random
stand for them in test_decode.py, and test_isolation.py lets a decoder crash).
"""

import json
import struct
import tempfile
from fractions import Fraction
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import av
import numpy as np

from tests.data.clips import (
    all_frames,
    encode,
    encode_audio,
    faststart,
    giant,
    image_bytes,
    mux_tone,
    picture,
    with_edit_list,
)

FRAMES = "the frames of plain sequential decoding"


def flipped(data, begin, end, count):
    generator = np.random.default_rng(0)
    damaged = bytearray(data)
    for at in generator.integers(begin, end, count):
        damaged[at] ^= 1 << int(generator.integers(8))
    return bytes(damaged)


def patched(data, box, at, value, count=1):
    """An mp4 with numbers of a box overwritten, counted from its name."""
    damaged, start = bytearray(data), data.index(box) + at
    damaged[start : start + 4 * count] = struct.pack(">I", value) * count
    return bytes(damaged)


def many_tracks(num_tracks):
    file = BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        sounds = [output.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(num_tracks)]
        for number in range(4):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        output.mux(stream.encode())
        for sound in sounds:
            mux_tone(output, sound, 0.02)
    return file.getvalue()


def size_changes():
    """Four pictures of 64x64, then four of 96x64, in one stream."""
    file = BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        for number in range(8):
            data = encode(
                codec="mjpeg", container="avi", pixel_format="yuvj420p", num_frames=1, width=64 + number // 4 * 32
            )
            with av.open(BytesIO(data)) as source:
                packet = next(source.demux())
                packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
                output.mux(packet)
    return file.getvalue()


def cut_faststart(part):
    with tempfile.TemporaryDirectory() as folder:
        data = faststart(Path(folder))
    return data[: len(data) * part // 10]


def av1():
    return encode(codec="libsvtav1", options={"svtav1-params": "lp=1"}, num_frames=4)


def subtitles_only():
    data = encode(container="matroska", num_frames=4, container_options={"write_crc32": "0"})
    assert data.count(b"\x83\x81\x01") == 1  # type of the track
    return data.replace(b"\x83\x81\x01", b"\x83\x81\x11")


def encrypted():
    keys = {"encryption_key": "76a6c65c5ea762046bd749a2e632ccbb", "encryption_kid": "a7e61c373e219033c21091fa607bf3b8"}
    return encode(container_options={"encryption_scheme": "cenc-aes-ctr", **keys})


def playlist(address):
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n".encode()


X265 = {"codec": "libx265", "num_frames": 8}
BLOCKS = {"codec": "mpeg4", "container": "mpegts", "num_frames": 8, "options": {"bf": "0"}}
# Number, what it is -> how to make it, and what may become of it: a reason, or the right frames.
MEDIA = {
    (1, "empty"): (lambda: b"", {"not_video"}),
    (2, "random"): (lambda: np.random.default_rng(0).bytes(200_000), {"not_video"}),
    (3, "ftyp"): (lambda: b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41", {"not_video"}),
    (4, "html"): (lambda: b"<!DOCTYPE html><html><body>404</body></html>" * 50, {"not_video"}),
    (5, "gzip"): (lambda: b"\x1f\x8b\x08" + bytes(500), {"not_video"}),
    (6, "cut"): (lambda: encode()[:-300], {"truncated"}),
    **{(7, f"index_first_cut_at_{part}0%"): (partial(cut_faststart, part), {"truncated"}) for part in (2, 5, 9)},
    (8, "flips_in_data"): (lambda: flipped(encode(num_frames=40), 600, 6000, 300), {"corrupt"}),
    (9, "flips_in_header"): (
        lambda: flipped(data := encode(), data.index(b"moov"), len(data), 40),
        {"corrupt", "truncated"},
    ),
    (10, "sound_only"): (lambda: encode_audio("aac", "mp4"), {"no_video_stream"}),
    (11, "one_frame"): (lambda: encode(num_frames=1), {FRAMES}),
    (12, "two_frames"): (lambda: encode(num_frames=2), {FRAMES}),
    (13, "two_pixels"): (lambda: encode(height=2, width=2), {"too_small"}),
    (14, "giant_ffv1"): (lambda: giant("ffv1", "matroska"), {"too_large"}),
    (14, "giant_mjpeg"): (lambda: giant("mjpeg", "avi"), {"too_large"}),
    (15, "two_hours"): (lambda: encode(fps=1, ticks=[0, 8000], num_frames=2), {"too_long"}),
    (16, "fast"): (lambda: encode(fps=1000), {FRAMES}),
    (17, "variable_rate"): (lambda: encode(ticks=[0, 1, 2, 7, 8, 20, 21, 60], num_frames=8), {FRAMES}),
    (18, "rotated"): (lambda: encode(rotation=90, width=96), {FRAMES}),
    (19, "odd"): (lambda: encode(codec="mpeg4", height=255, width=333, num_frames=2), {FRAMES}),
    (20, "ten_bits"): (lambda: encode(pixel_format="yuv420p10le"), {FRAMES}),
    (21, "yuv444"): (lambda: encode(pixel_format="yuv444p"), {FRAMES}),
    (22, "gray"): (lambda: encode(pixel_format="gray"), {FRAMES}),
    (23, "rgb"): (lambda: encode(codec="libx264rgb", pixel_format="rgb24"), {FRAMES}),
    (24, "size_changes"): (size_changes, {FRAMES}),
    (24, "two_files_in_one"): (lambda: encode(**BLOCKS) + encode(**BLOCKS, height=96), {"truncated"}),
    (25, "transport_stream"): (lambda: encode(container="mpegts"), {FRAMES}),
    **({(26, "av1"): (av1, {FRAMES})} if "libsvtav1" in av.codecs_available else {}),
    (27, "gif"): (lambda: encode(codec="gif", container="gif", pixel_format="rgb8"), {FRAMES}),
    (28, "jpeg"): (lambda: image_bytes(picture(0), "JPEG"), {"not_video"}),
    (29, "hevc"): (lambda: encode(**X265), {FRAMES}),
    (30, "vp9"): (lambda: encode(codec="libvpx-vp9", container="webm", num_frames=8), {FRAMES}),
    (31, "mpeg4_avi"): (lambda: encode(codec="mpeg4", container="avi"), {FRAMES}),
    (32, "interlaced"): (lambda: encode(options={"x264-params": "interlaced=1"}), {FRAMES}),
    (33, "playlist_file"): (lambda: playlist("file:///etc/hostname"), {"not_video"}),
    (34, "playlist_http"): (lambda: playlist("http://127.0.0.1:9/x.ts"), {"not_video"}),
    (36, "ffconcat"): (lambda: b"ffconcat version 1.0\nfile /etc/hostname\n", {"not_video"}),
    (40, "negative_times"): (lambda: encode(container="mpegts", ticks=list(range(-8, 8))), {FRAMES}),
    (40, "equal_times"): (lambda: patched(encode(options={"bf": "0"}), b"stts", 16, 0), {FRAMES}),
    (41, "edit_list"): (lambda: with_edit_list(encode(options={"bf": "0"}), 5 / 25), {FRAMES}),
    (42, "fifty_tracks"): (lambda: many_tracks(50), {FRAMES}),
    (43, "subtitles_only"): (subtitles_only, {"no_video_stream"}),
    (44, "encrypted"): (encrypted, {"corrupt"}),
    (45, "alpha"): (
        lambda: encode(codec="libvpx-vp9", container="webm", pixel_format="yuva420p", num_frames=8),
        {FRAMES},
    ),
    (46, "high_dynamic_range"): (
        lambda: encode(**X265, pixel_format="yuv420p10le", options={"color_trc": "smpte2084"}),
        {FRAMES},
    ),
    (47, "open_groups"): (
        lambda: encode(options={"x264-params": "open-gop=1:keyint=10:bframes=3"}, num_frames=30),
        {FRAMES},
    ),
    (48, "two_billion_samples"): (lambda: patched(encode(), b"stsz", 12, 1 << 31), {"corrupt"}),
    (49, "samples_of_no_size"): (lambda: patched(encode(), b"stsz", 16, 0, 16), {"empty"}),
}
CAPTION = {"caption": "a dog", "captions": ["two dogs"]}
TEXT = {
    (66, "empty"): (b'{"caption": " "}', "text_empty"),
    (67, "long"): (json.dumps({"caption": "word " * 210_000}).encode(), "text_too_long"),
    (68, "control_characters"): (json.dumps({"caption": "a \x00\x07\u202e\u200f dog \x1b[31m"}).encode(), None),
    (69, "lone_surrogate"): (b'{"caption": "\\ud800"}', "text_invalid_utf8"),
    (70, "list"): (b'{"caption": ["a"]}', "text_not_a_string"),
    (70, "null"): (b'{"caption": null}', "text_not_a_string"),
    (70, "number"): (b'{"caption": 7}', "text_not_a_string"),
    (71, "invalid"): (b'{"caption": "a"', "json_invalid"),
    (72, "nan"): (b'{"caption": "a", "x": NaN}', "json_invalid"),
    (73, "deep"): (b'{"x":' + b"[" * 100_000, "json_invalid"),
    (74, "unknown_letters"): ('{"caption": "\u9762\u6761"}'.encode(), None),
}


@cache
def media(kind):
    """The file of one kind."""
    return MEDIA[kind][0]()


def judged(kind):
    """Every frame that is shown [T, H, W, C], by plain sequential decoding."""
    data = media(kind)
    if kind[1] == "edit_list":
        return all_frames(encode(options={"bf": "0"}))[5:]
    if kind[1] == "size_changes":
        with av.open(BytesIO(data)) as source:
            return np.stack([frame.to_ndarray(format="rgb24", width=64, height=64) for frame in source.decode(video=0)])
    return np.rot90(all_frames(data), 1, axes=(1, 2)) if kind[1] == "rotated" else all_frames(data)

"""The table of bad input, by number: what each kind becomes, and that nothing is lost, replaced or counted otherwise.

Not made here: 15 as it stands (216,000 frames take minutes to encode: a file that claims 8000 s stands for it, and the
cap on frames is tested in test_decode.py); 50, collections of files that crashed decoders (they must be downloaded:
files damaged at random stand for them in test_decode.py, and test_isolation.py lets a decoder crash); 62 with a
million members (2000 are written, as the pass over a million headers takes half a minute).
"""

import io
import json
import os
import struct
import tarfile
import time
from fractions import Fraction
from functools import cache
from io import BytesIO

import av
import numpy as np
import pytest
import torch

from ivt2.data.annotations import Annotation
from ivt2.data.containers import DecodeError
from ivt2.data.decode import decode_video
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import Ledger
from ivt2.data.packing import pack
from ivt2.data.sampling import middle
from ivt2.data.shards import ShardSet, ShardWriter
from ivt2.data.tar_index import scan
from ivt2.data.transforms import Resize
from ivt2.errors import InputError
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
from tests.datamodules.clip_sets import datamodule

FRAMES = "the frames of plain sequential decoding"
TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def process():
    process = DecoderProcess(timeout_s=TIMEOUT_S)
    yield process
    process.close()


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
    return MEDIA[kind][0]()


def outcome(data, process):
    try:
        return decode_video(data, lambda num_frames, _: range(num_frames), process=process).frames
    except DecodeError as error:
        return error.reason


def judged(data, kind):
    """Every frame that is shown, by plain sequential decoding."""
    if kind[1] == "edit_list":
        return all_frames(encode(options={"bf": "0"}))[5:]
    if kind[1] == "size_changes":
        with av.open(BytesIO(data)) as source:
            return np.stack([frame.to_ndarray(format="rgb24", width=64, height=64) for frame in source.decode(video=0)])
    return np.rot90(all_frames(data), 1, axes=(1, 2)) if kind[1] == "rotated" else all_frames(data)


@pytest.mark.parametrize("kind", MEDIA, ids=lambda kind: f"{kind[0]}_{kind[1]}")
def test_media(kind, process):
    data, began = media(kind), time.monotonic()
    result = outcome(data, process)
    assert time.monotonic() - began < 2 * TIMEOUT_S
    if isinstance(result, str):
        assert result in MEDIA[kind][1]
        return
    assert FRAMES in MEDIA[kind][1]
    np.testing.assert_array_equal(result.permute(0, 2, 3, 1).numpy(), judged(data, kind))


def test_7_cut_with_the_index_first(process, tmp_path):
    data = faststart(tmp_path)
    assert {outcome(data[: len(data) * part // 10], process) for part in (2, 5, 9)} == {"truncated"}


def test_26_av1(process):
    try:
        data = encode(codec="libsvtav1", options={"svtav1-params": "lp=1"}, num_frames=4)
    except av.codec.codec.UnknownCodecError:
        pytest.skip("this PyAV cannot encode AV1")
    np.testing.assert_array_equal(outcome(data, process).permute(0, 2, 3, 1).numpy(), all_frames(data))


def account(folder, num_workers=0, **changed):
    """Keys trained on with their pixels, and the reasons of the others, from one epoch."""
    options = {"isolate": True, "decoder_timeout_s": TIMEOUT_S, "num_workers": num_workers, "num_streams": 1}
    rules = {"train_transforms": [Resize(16)], "train_sampling": middle, "train_captions": "first"}
    module = datamodule({"web": str(folder)}, **{**options, **rules, "global_batch_size": 1, **changed})
    module.setup("fit")
    used, skipped = {}, []
    for batch in module.train_dataloader():
        used |= {key: video.clone() for key, video in zip(batch["key"], batch["video"], strict=True)}
        skipped += [(entry.key, entry.reason) for entry in batch["skipped"]]
    assert used.keys().isdisjoint(key for key, _ in skipped)
    assert len(used) + len(skipped) == module.ledger.seen
    assert len(skipped) == module.ledger.skipped
    return used, skipped, module.ledger.state_dict()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """All bad samples in one set."""
    folder = tmp_path_factory.mktemp("packed")
    with ShardWriter(folder, max_samples=25, max_bytes=1 << 30) as writer:
        for number, name in MEDIA:
            writer.write(f"{number}_{name}", {"mp4": media((number, name)), "json": CAPTION})
        for (number, name), (text, _) in TEXT.items():
            writer.write(f"{number}_{name}", {"mp4": encode(num_frames=4), "json": text})
        writer.write("59", {"mp4": encode(num_frames=4)})
        writer.write("60", {"json": CAPTION})
    return folder


@pytest.mark.dist
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_one_set_of_all_is_counted_alike_by_any_number_of_workers(packed):
    used, entries, ledger = account(packed)
    skipped = dict(entries)
    names = {f"{number}_{name}": allowed for (number, name), (_, allowed) in MEDIA.items()}
    shards = ShardSet.open(packed)
    assert used.keys() | skipped.keys() == {shards.key(index) for index in range(len(shards))}
    texts = {f"{number}_{name}": reason for (number, name), (_, reason) in TEXT.items()}
    for key, reason in {**texts, "59": "text_missing", "60": "video_missing"}.items():
        assert skipped.get(key) == reason
    for key, allowed in names.items():
        assert skipped.get(key, FRAMES) in allowed
    for key in used.keys() - texts.keys():
        kind = (int(key.split("_")[0]), key.split("_", 1)[1])
        whole = decode_video(media(kind), lambda num_frames, _: middle(num_frames, 2), by_time=True).frames
        assert torch.equal(used[key], Resize(16)(whole, np.random.default_rng(0)))
    for num_workers in (1, 3):
        others = account(packed, num_workers)
        assert others[1:] == (entries, ledger)
        assert all(torch.equal(others[0][key], used[key]) for key in used)


def good(number):
    return {"mp4": encode(num_frames=4 + number % 2), "json": CAPTION}


def member(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, io.BytesIO(data)


def write_tar(path, members, form=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=form) as archive:
        for info, file in members:
            archive.addfile(info, file)


def sample(key):
    return [member(f"{key}.mp4", good(0)["mp4"]), member(f"{key}.json", json.dumps(CAPTION).encode())]


def our_shard(folder, num=4):
    with ShardWriter(folder, max_samples=num, max_bytes=1 << 30) as writer:
        for number in range(num):
            writer.write(f"good{number}", good(number))
    return folder / "shard-000000.tar"


def cut_tar(folder):
    path = our_shard(folder)
    os.truncate(path, scan(path).members["good2"]["mp4"].offset + 9)


def empty_tar(folder):
    our_shard(folder).write_bytes(b"")


def overwritten_header(folder):
    path = our_shard(folder)
    offsets = [span.offset for span in scan(path).members["good1"].values()]
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset - 512 : offset - 500] = b"\xff" * 12
    path.write_bytes(data)


def lying_size(folder):
    """The header of the third sample claims a gigabyte."""
    members = sample("good0") + sample("good1") + sample("lies")
    write_tar(folder / "a.tar", members)
    data = bytearray((folder / "a.tar").read_bytes())
    begin = data.rindex(b"lies.mp4")
    header = tarfile.TarInfo.frombuf(bytes(data[begin : begin + 512]), "utf-8", "strict")
    header.size = 1 << 30
    data[begin : begin + 512] = header.tobuf(tarfile.GNU_FORMAT)
    (folder / "a.tar").write_bytes(data)


def long_names(form):
    return lambda folder: write_tar(folder / "a.tar", sample("x" * 150 + "good0") + sample("good1"), form)


def with_members(*members):
    return lambda folder: write_tar(folder / "a.tar", [*sample("good0"), *members, *sample("good1")])


def split_pair(folder):
    first, second = sample("pair")
    write_tar(folder / "a.tar", [*sample("good0"), first])
    write_tar(folder / "b.tar", [second, *sample("good1")])


def many_members(folder):
    write_tar(folder / "a.tar", [*sample("good0"), *(member(f"{n}.txt", b"x") for n in range(1999))])


def compressed(folder):
    write_tar(folder / "b.tar", sample("good0"))
    with tarfile.open(folder / "a.tar", "w:gz") as archive:
        archive.addfile(*member("x.mp4", bytes(1 << 22)))


# Number, what it is -> how to make it; then keys trained on and reasons of the others, or the words of the refusal.
TARS = {
    (51, "cut"): (cut_tar, (["good0", "good1"], ["shard_truncated"] * 2)),
    (52, "empty"): (empty_tar, "is not a tar file"),
    (53, "garbage_between"): (overwritten_header, (["good0", "good2", "good3"], ["shard_changed"])),
    (54, "size_that_lies"): (lying_size, (["good0", "good1"], ["shard_truncated"])),
    (55, "long_names_gnu"): (long_names(tarfile.GNU_FORMAT), (["good1", "x" * 150 + "good0"], [])),
    (55, "long_names_pax"): (long_names(tarfile.PAX_FORMAT), (["good1", "x" * 150 + "good0"], [])),
    (55, "sparse"): (
        with_members(member("s.mp4", type=tarfile.GNUTYPE_SPARSE)),
        (["good0", "good1"], ["member_refused"]),
    ),
    (56, "upwards"): (with_members(*sample("../../x")), (["good0", "good1"], ["member_refused"])),
    (56, "absolute"): (with_members(*sample("/x")), (["good0", "good1"], ["member_refused"])),
    **{
        (57, name): (
            with_members(member("x.mp4", type=kind, linkname="/etc/passwd")),
            (["good0", "good1"], ["member_refused"]),
        )
        for name, kind in (("symlink", tarfile.SYMTYPE), ("hardlink", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE))
    },
    (58, "key_twice"): (with_members(*sample("good0")), (["good1"], ["duplicate_key"])),
    (59, "no_caption"): (with_members(sample("x")[0]), (["good0", "good1"], ["text_missing"])),
    (60, "no_video"): (with_members(sample("x")[1]), (["good0", "good1"], ["video_missing"])),
    (61, "split_pair"): (split_pair, (["good0", "good1"], ["text_missing", "video_missing"])),
    (62, "many_members"): (many_members, (["good0"], ["video_missing"] * 1999)),
    (63, "compressed"): (compressed, "run gunzip on it"),
    (64, "name_of_no_text"): (with_members(*sample("caf\udce9")), (["caf\\xe9", "good0", "good1"], [])),
    (65, "code"): (
        with_members(*(member(f"good1.{kind}", b"evil") for kind in ("pyd", "pickle", "pth"))),
        (["good0", "good1"], []),
    ),
}


@pytest.mark.parametrize("kind", TARS, ids=lambda kind: f"{kind[0]}_{kind[1]}")
def test_tar(kind, tmp_path):
    make, expected = TARS[kind]
    make(tmp_path)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected) as error:
            account(tmp_path)
        assert "\n" not in str(error.value)
        return
    size = 500 if kind[0] == 62 else 1
    used, skipped, _ = account(tmp_path, isolate=False, budget=1.0, global_batch_size=size)
    assert sorted(used) == expected[0]
    assert sorted(reason for _, reason in skipped) == expected[1]


def test_35_37_38_39_paths_are_not_followed(tmp_path):
    root = tmp_path / "media"
    (root / "folder.mp4").mkdir(parents=True)
    (root / "list.m3u8").write_bytes(playlist("file:///etc/hostname"))
    (root / "good.mp4").write_bytes(encode(num_frames=2))
    os.mkfifo(root / "fifo.mp4")
    (root / "loop.mp4").symlink_to("loop.mp4")
    names = ["list.m3u8", "fifo.mp4", "folder.mp4", "loop.mp4", "good.mp4"]
    ledger = Ledger(9)
    records = [Annotation(file=name, captions=("a dog",)) for name in names]
    manifest = pack(records, root, tmp_path / "set", source="web", ledger=ledger)
    assert (manifest.samples, ledger.seen) == (1, 5)
    assert ledger.by_reason() == {"file_missing": 3, "file_type_unknown": 1}

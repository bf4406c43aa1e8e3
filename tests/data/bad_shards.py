"""Bad input by number: shards, what makes each, and what may become of its samples.

62 has 200 members for a million, as each is a step of the stream; test_bad_media.py goes over the headers of 5000 (a
million take half a minute).
"""

import io
import json
import os
import tarfile
from functools import cache

from ivt2.data.shards import ShardWriter
from ivt2.data.tar_index import scan
from tests.data.bad_media import CAPTION
from tests.data.clips import encode


@cache
def good(number):
    """Members of a clip; encoding it again may give other pixels."""
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


OURS = {51, 53}
"""Kinds made from our own shard, where clip n is ``good(n)``; in the others every clip is ``good(0)``."""


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


def many_members(num):
    return lambda folder: write_tar(
        folder / "a.tar", [*sample("good0"), *(member(f"{n}.txt", b"x") for n in range(1, num))]
    )


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
    (62, "many_members"): (many_members(200), (["good0"], ["video_missing"] * 199)),
    (63, "compressed"): (compressed, "run gunzip on it"),
    (64, "name_of_no_text"): (with_members(*sample("caf\udce9")), (["caf\\xe9", "good0", "good1"], [])),
    (65, "code"): (
        with_members(*(member(f"good1.{kind}", b"evil") for kind in ("pyd", "pickle", "pth"))),
        (["good0", "good1"], []),
    ),
}

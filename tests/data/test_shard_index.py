"""Exact: an index file gives back what was found in the shard, and a wrong one is refused."""

import struct
import tarfile

import pytest

from ivt2.data.shard_index import _STORED_TYPES, SampleTable
from ivt2.data.shards import ShardWriter
from ivt2.data.tar_index import MEMBER_TYPES, Span, TarIndex, is_header, scan


def rows(table):
    return [(table.key(i), table.spans(i), table.reason(i)) for i in range(len(table))]


def small_table():
    index = TarIndex()
    index.members = {"a": {"mp4": Span(512, 5000), "json": Span(6144, 30)}, "\u00e9": {"txt": Span(7168, 0)}, "c": {}}
    index.unusable = {"c": "member_refused"}
    return SampleTable.of(index, 5)


def test_a_table_survives_its_file():
    table = small_table()
    content = table.to_bytes(shard_bytes=9000)
    again = SampleTable.from_bytes(content, shard_bytes=9000, num_samples=5)
    assert rows(again) == rows(table)
    assert rows(table)[0] == ("a", {"mp4": Span(512, 5000), "json": Span(6144, 30)}, None)
    assert [row[2] for row in rows(table)] == [None, None, "member_refused", "shard_damaged", "shard_damaged"]
    assert again.to_bytes(shard_bytes=9000) == content


def test_what_the_writer_noted_is_what_a_scan_finds(tmp_path):
    """The scan reads the headers with tarfile: another way to the same offsets."""
    keys = ["short", "x" * 98, "y" * 240, "\u9762\u6761", "z"]
    with ShardWriter(tmp_path, max_samples=9, max_bytes=1 << 30) as writer:
        for number, key in enumerate(keys):
            writer.write(key, {"json": {}, "mp4": bytes(511 + number), "txt": ""})
    path = tmp_path / "shard-000000.tar"
    size = path.stat().st_size
    assert (tmp_path / "shard-000000.index").read_bytes() == SampleTable.of(scan(path), 5).to_bytes(shard_bytes=size)


def test_every_type_has_its_number():
    assert set(_STORED_TYPES) == set(MEMBER_TYPES)


def test_an_index_of_another_shard_is_refused():
    content = small_table().to_bytes(shard_bytes=9000)
    for facts in ({"shard_bytes": 9001, "num_samples": 5}, {"shard_bytes": 9000, "num_samples": 4}):
        with pytest.raises(ValueError, match="another shard"):
            SampleTable.from_bytes(content, **facts)


def test_no_damage_points_outside_the_shard():
    """Whatever bytes a file has: it is refused, or all that it says can be looked up."""
    content = small_table().to_bytes(shard_bytes=9000)
    for place in range(len(content)):
        for value in (0, 7, 128, 255):
            damaged = content[:place] + bytes([value]) + content[place + 1 :]
            try:
                table = SampleTable.from_bytes(damaged, shard_bytes=9000, num_samples=5)
            except ValueError:
                continue
            spans = [span for row in rows(table) for span in row[1].values()]
            assert all(0 <= span.offset <= span.offset + span.size <= 9000 for span in spans)
    for end in range(len(content)):
        with pytest.raises(ValueError, match=r"is too short|is not an index"):
            SampleTable.from_bytes(content[:end], shard_bytes=9000, num_samples=5)
    huge = struct.pack("<8s4Q", content[:8], 9000, 5, 2**63, 2**64 - 1)
    with pytest.raises(ValueError, match="is not an index"):
        SampleTable.from_bytes(huge, shard_bytes=9000, num_samples=5)


def test_headers_are_told_by_name_size_and_kind():
    info = tarfile.TarInfo("a.mp4")
    info.size = 77
    block = info.tobuf(tarfile.USTAR_FORMAT)
    assert is_header(block, "a.mp4", Span(512, 77))
    assert not is_header(block, "b.mp4", Span(512, 77))
    assert not is_header(block, "a.mkv", Span(512, 77))
    assert not is_header(block, "a.mp4", Span(512, 76))
    assert not is_header(block[:-1], "a.mp4", Span(512, 77))
    assert not is_header(b"\xff" + block[1:], "a.mp4", Span(512, 77))
    for name in ("./a.mp4", "a.MP4"):
        other = tarfile.TarInfo(name)
        other.size = 77
        assert is_header(other.tobuf(tarfile.USTAR_FORMAT), "a.mp4", Span(512, 77))
    info.type = tarfile.SYMTYPE
    assert not is_header(info.tobuf(tarfile.USTAR_FORMAT), "a.mp4", Span(512, 77))

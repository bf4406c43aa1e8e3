"""Exact: written shards are deterministic, readable by webdataset, and damage is told apart sample by sample."""

import io
import json
import os
import pickle
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ivt2.data.ledger import SampleError
from ivt2.data.manifest import MANIFEST_NAME, read_manifest, verify
from ivt2.data.shards import ShardSet, ShardWriter
from ivt2.data.tar_index import scan
from ivt2.errors import InputError
from tests.data.tars import write_tar


def members(number):
    return {"mp4": bytes([number % 256]) * (300 + 37 * number), "json": {"caption": f"clip {number}"}}


def write(folder, num=7, max_samples=3, max_bytes=1 << 20, first=0, **options):
    with ShardWriter(folder, max_samples=max_samples, max_bytes=max_bytes, **options) as writer:
        for number in range(first, first + num):
            writer.write(f"clip{number:03d}", members(number), 0.5)
    return writer.manifest


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def as_version_1(folder):
    """Make a set what earlier versions wrote."""
    path = folder / MANIFEST_NAME
    facts = json.loads(path.read_text())
    del facts["sources"]
    shards = [{name: value for name, value in shard.items() if name != "index_sha256"} for shard in facts["shards"]]
    path.write_text(json.dumps({**facts, "version": 1, "tool": "ivt2", "shards": shards}))
    for index in folder.glob("*.index"):
        index.unlink()


def problems(shards):
    return [shards.problem(index) for index in range(len(shards))]


make_tar = partial(write_tar, form=tarfile.GNU_FORMAT)


def test_every_sample_comes_back(tmp_path):
    manifest = write(tmp_path / "set")
    shards = ShardSet.open(tmp_path / "set")
    assert shards.samples_per_shard == (3, 3, 1)
    assert shards.manifest_hash == manifest.hash
    assert problems(shards) == [None] * 7
    for number in (6, 0, 3, 2):
        sample = shards.read(number)
        assert (sample.key, sample.index) == (f"clip{number:03d}", number)
        assert sample.shard == f"shard-{number // 3:06d}.tar"
        assert sample.members["mp4"] == members(number)["mp4"]
        assert json.loads(sample.members["json"]) == {"caption": f"clip {number}"}
    with pytest.raises(IndexError):
        shards.read(7)


def test_webdataset_reads_our_shards(tmp_path):
    write(tmp_path)
    urls = sorted(str(path) for path in tmp_path.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"clip{number:03d}" for number in range(7)]
    assert all(sample["mp4"] == members(number)["mp4"] for number, sample in enumerate(samples))


def test_keys_longer_than_a_tar_header_and_of_any_script_survive(tmp_path):
    keys = ["x" * 240, "\u9762\u6761 caf\u00e9"]
    with ShardWriter(tmp_path, max_samples=9, max_bytes=9999) as writer:
        for key in keys:
            writer.write(key, {"txt": key})
    shards = ShardSet.open(tmp_path)
    assert [shards.read(index).key for index in range(2)] == keys
    assert [s["__key__"] for s in webdataset.WebDataset(str(tmp_path / shards.names[0]), shardshuffle=False)] == keys


def test_equal_samples_give_equal_bytes_and_the_manifest_says_what_there_is(tmp_path):
    manifest = write(tmp_path / "a")
    assert write(tmp_path / "b") == manifest
    assert content(tmp_path / "a") == content(tmp_path / "b")
    numbered = [f"shard-{number:06d}.{kind}" for number in range(3) for kind in ("index", "tar")]
    assert sorted(content(tmp_path / "a")) == [MANIFEST_NAME, *numbered]
    facts = json.loads((tmp_path / "a" / MANIFEST_NAME).read_text())
    assert (facts["samples"], facts["duration_s"]) == (7, 3.5)
    assert facts["bytes"] == sum(path.stat().st_size for path in (tmp_path / "a").glob("*.tar"))
    assert read_manifest(tmp_path / "a") == manifest


def test_a_shard_ends_at_the_byte_limit_and_a_large_sample_stands_alone(tmp_path):
    with ShardWriter(tmp_path, max_samples=100, max_bytes=1000) as writer:
        for number, size in enumerate((400, 400, 400, 5000, 100)):
            writer.write(str(number), {"mp4": bytes(size)})
    assert [shard.samples for shard in writer.manifest.shards] == [2, 1, 1, 1]


@pytest.mark.parametrize("key", ["a.b", "a/b", "..", "", "a\nb", "a\\b"])
def test_keys_that_webdataset_would_cut_are_refused(tmp_path, key):
    with pytest.raises(InputError, match="without dots and slashes"):
        ShardWriter(tmp_path, max_samples=1, max_bytes=1).write(key, {"txt": "x"})


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"pyd": b"x"}, "type must be one of"),
        ({}, "no members"),
        ({"json": {"caption": "\ud800"}}, "cannot be written"),
        ({"json": {"score": float("nan")}}, "cannot be written"),
        ({"npy": b"no array"}, "cannot be written"),
        ({"npy": pickle.dumps([1])}, "cannot be written"),
    ],
)
def test_members_that_cannot_be_trusted_are_refused(tmp_path, sample, message):
    with pytest.raises(InputError, match=message):
        ShardWriter(tmp_path, max_samples=1, max_bytes=1).write("key", sample)


def test_npy_members_hold_plain_arrays(tmp_path):
    file = io.BytesIO()
    np.save(file, np.arange(4))
    with ShardWriter(tmp_path, max_samples=1, max_bytes=1) as writer:
        writer.write("key", {"npy": file.getvalue()})
    assert np.load(io.BytesIO(ShardSet.open(tmp_path).read(0).members["npy"])).tolist() == [0, 1, 2, 3]


def test_a_key_is_used_once(tmp_path):
    writer = ShardWriter(tmp_path, max_samples=1, max_bytes=1)
    writer.write("key", {"txt": "x"})
    with pytest.raises(InputError, match="used twice"):
        writer.write("key", {"txt": "y"})


def test_an_interrupted_write_leaves_no_manifest_and_no_partial_file(tmp_path):
    def interrupted():
        with ShardWriter(tmp_path, max_samples=2, max_bytes=1 << 20) as writer:
            for number in range(3):
                writer.write(str(number), members(number))
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert sorted(content(tmp_path)) == ["shard-000000.index", "shard-000000.tar"]


def test_writing_the_same_again_changes_nothing_and_other_content_is_refused(tmp_path):
    write(tmp_path)
    before = content(tmp_path)
    write(tmp_path)
    for changed in ({"first": 1}, {"num": 6}, {"num": 9}):
        with pytest.raises(InputError, match="overwrite"):
            write(tmp_path, **changed)
    assert content(tmp_path) == before


def test_overwriting_replaces_and_leaves_no_shard_behind(tmp_path):
    write(tmp_path)
    write(tmp_path, num=2, overwrite=True)
    assert sorted(content(tmp_path)) == [MANIFEST_NAME, "shard-000000.index", "shard-000000.tar"]
    assert len(ShardSet.open(tmp_path)) == 2


def test_shards_of_another_tool_are_not_overwritten(tmp_path):
    make_tar(tmp_path / "train.tar", [("a.txt", b"x")])
    with pytest.raises(InputError, match="overwrite"):
        write(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/set.*choose another folder"):
        write(tmp_path / "file" / "set")
    with pytest.raises(InputError, match="no sample was written"):
        write(tmp_path / "empty", num=0)


def test_opening_nothing_says_what_to_run(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=rf"{folder.name}.*ivt2\.cli\.shards"):
            ShardSet.open(folder)


@pytest.mark.parametrize(
    "data", [b"", b"<html>not found</html>", bytes(2048), os.urandom(4096), b"\x1f\x8b" + bytes(600)]
)
def test_a_file_that_is_no_tar_is_named(tmp_path, data):
    write(tmp_path)
    (tmp_path / "shard-000001.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"shard-000001\.tar"):
        ShardSet.open(tmp_path)


def test_a_truncated_shard_gives_what_is_whole_and_counts_the_rest(tmp_path):
    write(tmp_path, num=8, max_samples=4)
    path = tmp_path / "shard-000000.tar"
    whole = ShardSet.open(tmp_path)
    path.write_bytes(path.read_bytes()[: scan(path).members["clip002"]["mp4"].offset + 10])
    shards = ShardSet.open(tmp_path)
    assert problems(shards) == [None, None, "shard_truncated", "shard_truncated", *[None] * 4]
    assert len(shards) == 8
    assert shards.key(2) == "clip002"
    assert shards.key(3) == "shard-000000.tar#3"
    assert shards.read(5).key == "clip005"
    assert shards.manifest_hash == whole.manifest_hash
    with pytest.raises(SampleError) as error:
        shards.read(3)
    assert error.value.reason == "shard_truncated"


def test_a_cut_between_two_members_of_a_sample_is_seen(tmp_path):
    write(tmp_path, num=3, max_samples=3)
    path = tmp_path / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[: scan(path).members["clip001"]["mp4"].offset - 512])
    assert problems(ShardSet.open(tmp_path)) == [None, "shard_truncated", "shard_truncated"]


def damage_headers(path, key):
    data = bytearray(path.read_bytes())
    for span in scan(path).members[key].values():
        data[span.offset - 512 : span.offset - 500] = b"\xff" * 12
    path.write_bytes(data)


def read_or_reason(shards, index):
    try:
        return shards.read(index).key
    except SampleError as error:
        return error.reason


def test_samples_behind_a_damaged_header_are_found_again(tmp_path):
    write(tmp_path, num=4, max_samples=4)
    damage_headers(tmp_path / "shard-000000.tar", "clip001")
    shards = ShardSet.open(tmp_path)
    assert [read_or_reason(shards, index) for index in range(4)] == ["clip000", "shard_changed", "clip002", "clip003"]
    as_version_1(tmp_path)
    shards = ShardSet.open(tmp_path)
    assert [shards.key(index) for index in range(3)] == ["clip000", "clip002", "clip003"]
    assert problems(shards) == [None, None, None, "shard_truncated"]


def test_a_shard_without_any_whole_sample_is_an_error(tmp_path):
    write(tmp_path)
    path = tmp_path / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[:520])
    with pytest.raises(InputError, match="no readable sample"):
        ShardSet.open(tmp_path)


def test_shards_that_differ_from_the_manifest_are_refused(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", first=40)
    first = (tmp_path / "b" / "shard-000000.tar").read_bytes()
    (tmp_path / "a" / "shard-000000.tar").write_bytes(first)
    with pytest.raises(InputError, match="not the one that"):
        ShardSet.open(tmp_path / "a")
    (tmp_path / "a" / "shard-000000.tar").unlink()
    with pytest.raises(InputError, match=r"shard-000000\.tar: is in .* but not there"):
        ShardSet.open(tmp_path / "a")
    (tmp_path / "b" / "other.tar").write_bytes(first)
    with pytest.raises(InputError, match=r"other\.tar: is not in"):
        ShardSet.open(tmp_path / "b")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "{",
            '{"version": 1}',
            '{"version": 9, "shards": []}',
            '{"version": 1, "shards": [{"name": "../x"}]}',
        ),
        '{"version": 2, "shards": [{"name": 1, "sha256": "", "bytes": 1, "samples": 1, "duration_s": 0}]}',
        '{"version": 2, "shards": [{"name": "a", "sha256": "", "bytes": -1, "samples": 1, "duration_s": 0}]}',
        '{"version": 2, "shards": [{"name": "a", "sha256": "", "bytes": 1, "samples": 1.5, "duration_s": 0}]}',
    ],
)
def test_a_manifest_that_is_none_is_named(tmp_path, text):
    write(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(InputError, match=MANIFEST_NAME):
        ShardSet.open(tmp_path)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    write(tmp_path / "set")
    path = tmp_path / "set" / MANIFEST_NAME
    path.write_text(path.read_text().replace("shard-000001.tar", "../x.tar"))
    with pytest.raises(InputError, match="outside its folder"):
        ShardSet.open(tmp_path / "set")


def test_verify_finds_nothing_in_an_intact_set(tmp_path):
    write(tmp_path)
    assert [check.problem for check in verify(tmp_path)] == [None] * 3


def test_verify_finds_what_opening_cannot(tmp_path):
    write(tmp_path, max_samples=2)
    names = sorted(path.name for path in tmp_path.glob("*.tar"))
    flipped = bytearray((tmp_path / names[1]).read_bytes())
    flipped[1600] ^= 1
    (tmp_path / names[1]).write_bytes(flipped)
    (tmp_path / names[2]).write_bytes(b"short")
    (tmp_path / names[3]).unlink()
    (tmp_path / "shard-000000.index").write_bytes(b"")
    checks = {check.name: check.problem for check in verify(tmp_path)}
    assert checks[names[0]] == "sha256 of the index differs"
    assert checks[names[1]] == "sha256 differs"
    assert checks[names[2]].startswith("5 bytes instead of")
    assert checks[names[3]] == "missing"
    with pytest.raises(InputError, match=MANIFEST_NAME):
        list(verify(tmp_path / "absent"))


def test_shards_of_other_tools_are_read(tmp_path):
    make_tar(tmp_path / "b.tar", [("n02.mp4", b"video"), ("n02.json", b"{}"), ("n02.cls", b"7")])
    make_tar(tmp_path / "a.tar", [("./dir/n00.MP4", b"v"), ("dir/n00.txt", b"words"), ("dir/n01.jpg", b"i")])
    shards = ShardSet.open(tmp_path)
    assert [shards.key(index) for index in range(3)] == ["dir/n00", "dir/n01", "n02"]
    assert shards.read(0).members == {"mp4": b"v", "txt": b"words"}
    assert shards.types(2) == ("mp4", "json")
    assert ShardSet.open(tmp_path).manifest_hash == shards.manifest_hash
    make_tar(tmp_path / "b.tar", [("n02.mp4", b"video")] * 1)
    assert ShardSet.open(tmp_path).manifest_hash != shards.manifest_hash


def test_foreign_truncation_costs_the_sample_it_cuts(tmp_path):
    path = tmp_path / "a.tar"
    make_tar(path, [(f"{number}.mp4", bytes([number]) * 2000) for number in range(4)])
    path.write_bytes(path.read_bytes()[:7000])
    assert problems(ShardSet.open(tmp_path)) == [None, None, "shard_truncated"]


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "bad",
    [
        ("x.mp4", link("x.mp4", tarfile.SYMTYPE)),
        ("x.mp4", link("x.mp4", tarfile.LNKTYPE)),
        ("x.mp4", link("x.mp4", tarfile.CHRTYPE)),
        ("x.mp4", link("x.mp4", tarfile.FIFOTYPE)),
        ("../x.mp4", b"v"),
        ("/x.mp4", b"v"),
        ("a/../../x.mp4", b"v"),
    ],
)
def test_links_devices_and_names_that_leave_the_folder_are_refused(tmp_path, bad):
    make_tar(tmp_path / "a.tar", [("good.mp4", b"v"), bad, ("last.mp4", b"w")])
    shards = ShardSet.open(tmp_path)
    assert problems(shards) == [None, "member_refused", None]
    assert shards.read(2).members == {"mp4": b"w"}


def test_code_in_members_is_never_indexed(tmp_path):
    make_tar(
        tmp_path / "a.tar", [("x.mp4", b"v"), *((f"x.{kind}", b"evil") for kind in ("pyd", "pickle", "pth", "pt"))]
    )
    assert ShardSet.open(tmp_path).read(0).members == {"mp4": b"v"}


def test_a_member_that_occurs_twice_makes_its_sample_unusable(tmp_path):
    make_tar(tmp_path / "a.tar", [("x.mp4", b"v"), ("y.mp4", b"v"), ("x.mp4", b"w")])
    assert problems(ShardSet.open(tmp_path)) == ["duplicate_key", None]


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    make_tar(tmp_path / "a.tar", [("caf\udce9.mp4", b"v")])
    assert ShardSet.open(tmp_path).key(0) == "caf\\xe9"


def test_sets_without_index_are_read_and_written_again_as_they_are(tmp_path):
    write(tmp_path)
    new = ShardSet.open(tmp_path)
    as_version_1(tmp_path)
    before = content(tmp_path)
    write(tmp_path)
    assert content(tmp_path) == before
    old = ShardSet.open(tmp_path)
    assert old.manifest_hash == new.manifest_hash
    assert [old.read(index) for index in range(7)] == [new.read(index) for index in range(7)]


def test_opening_a_set_with_index_reads_no_shard(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr("ivt2.data.shards.scan", None)
    shards = ShardSet.open(tmp_path)
    for path in tmp_path.glob("*.index"):
        if path.name != "shard-000001.index":
            path.unlink()
    assert [shards.key(index) for index in (3, 4, 5)] == ["clip003", "clip004", "clip005"]


@pytest.mark.parametrize("damage", ["absent", "flipped", "another"])
def test_an_index_that_is_not_the_one_of_the_manifest_is_not_used(tmp_path, caplog, damage):
    write(tmp_path)
    expected = [ShardSet.open(tmp_path).read(index) for index in range(7)]
    path = tmp_path / "shard-000001.index"
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content if damage == "flipped" else (tmp_path / "shard-000000.index").read_bytes())
    if damage == "absent":
        path.unlink()
    shards = ShardSet.open(tmp_path)
    assert [shards.read(index) for index in range(7)] == expected
    assert "shard-000001.tar: its index is not used" in caplog.text


def test_a_shard_exchanged_for_one_of_the_same_size_is_noticed(tmp_path):
    for name, key in (("a", "one"), ("b", "two")):
        with ShardWriter(tmp_path / name, max_samples=9, max_bytes=9999) as writer:
            writer.write(key, {"txt": "same"})
    (tmp_path / "b" / "shard-000000.tar").replace(tmp_path / "a" / "shard-000000.tar")
    with pytest.raises(SampleError, match="shard_changed"):
        ShardSet.open(tmp_path / "a").read(0)


def test_few_indices_are_held_at_a_time(tmp_path, monkeypatch):
    write(tmp_path, num=40, max_samples=4)
    monkeypatch.setattr(ShardSet, "_MAX_INDEX_BYTES", 1000)
    shards = ShardSet.open(tmp_path)
    for index in (39, 0, 20, 39, 1):
        assert shards.read(index).key == f"clip{index:03d}"
        assert sum(table.nbytes for table in shards._tables.values()) == shards._table_bytes <= 1000


def test_the_manifest_names_its_sources(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"abc")
    write(tmp_path / "set", sources=[tmp_path / "a.jsonl"])
    source = read_manifest(tmp_path / "set").sources[0]
    assert (source.name, source.bytes, source.sha256[:8]) == ("a.jsonl", 3, "ba7816bf")
    with pytest.raises(InputError, match=r"b\.jsonl: cannot be read"):
        write(tmp_path / "other", sources=[tmp_path / "b.jsonl"])


def test_reading_works_in_forked_processes_and_after_pickling(tmp_path):
    write(tmp_path)
    shards = ShardSet.open(tmp_path)
    expected = shards.read(4)
    assert pickle.loads(pickle.dumps(shards)).read(4) == expected
    child = os.fork()
    if child == 0:
        os._exit(0 if shards.read(4) == expected and shards.read(1).key == "clip001" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shards.read(4) == expected


def num_open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_open_files_are_bounded_and_closed(tmp_path):
    write(tmp_path, num=40, max_samples=1)
    shards = ShardSet.open(tmp_path)
    before = num_open_files()
    assert [shards.read(index).key for index in range(40)] == [f"clip{number:03d}" for number in range(40)]
    assert num_open_files() - before == 32
    shards.close()
    assert num_open_files() == before


def test_a_shard_that_changes_while_open_is_told(tmp_path):
    write(tmp_path)
    shards = ShardSet.open(tmp_path)
    os.truncate(tmp_path / "shard-000001.tar", 700)
    with pytest.raises(SampleError, match="shard_changed"):
        shards.read(5)
    (tmp_path / "shard-000002.tar").unlink()
    with pytest.raises(SampleError, match="shard_unreadable"):
        shards.read(6)

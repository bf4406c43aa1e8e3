"""Exact: shards of other tools and of version 1 get index files and a manifest, and stay what they are."""

import json
import logging
from pathlib import Path

import pytest
import webdataset

from ivt2.data import shards as shards_module
from ivt2.data.indexing import index_shards
from ivt2.data.manifest import MANIFEST_NAME, read_manifest, verify
from ivt2.data.shards import ShardSet, ShardWriter
from ivt2.errors import InputError
from tests.data.tars import write_tar


def write_foreign(folder: Path, num_shards: int = 3) -> Path:
    """What video2dataset writes: nine digits a key, media, text and json, without a manifest."""
    folder.mkdir()
    for shard in range(num_shards):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for sample in range(2):
                key = f"{shard * 10_000 + sample:09d}"
                text = {"caption": f"clip {key}", "status": "success"}
                writer.write({"__key__": key, "mp4": key.encode() * 99, "txt": f"clip {key}", "json": text})
        (folder / f"{shard:05d}_stats.json").write_text("{}")
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    return folder


def contents(folder: Path, *suffixes: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in suffixes}


def samples(shards: ShardSet) -> list[tuple[object, ...]]:
    return [(shards.key(i), shards.types(i), shards.problem(i), shards.read(i).members) for i in range(len(shards))]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_set_of_another_tool_opens_without_a_look_at_its_headers(tmp_path, monkeypatch, num_processes):
    folder = write_foreign(tmp_path / "set")
    before, tars = samples(ShardSet.open(folder)), contents(folder, ".tar")
    done = []
    indexed = index_shards(folder, num_processes=num_processes, on_shard=done.append)
    assert done == list(tars)
    assert indexed.manifest.samples == 6
    assert not indexed.unusable
    assert contents(folder, ".tar") == tars
    assert [check.problem for check in verify(folder)] == [None] * 3
    monkeypatch.setattr(shards_module, "scan", None)
    assert samples(ShardSet.open(folder)) == before


def test_again_changes_nothing_and_a_lost_index_comes_back(tmp_path):
    folder = write_foreign(tmp_path / "set")
    index_shards(folder)
    files = contents(folder, ".tar", ".index", ".json")
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    index_shards(folder, num_processes=2)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    (folder / "00001.index").unlink()
    (folder / "00002.index").write_bytes(b"damaged")
    index_shards(folder)
    assert contents(folder, ".tar", ".index", ".json") == files


def test_a_set_of_version_1_keeps_what_its_manifest_says(tmp_path):
    source = tmp_path / "clips.jsonl"
    source.write_text("{}")
    with ShardWriter(tmp_path / "set", max_samples=2, max_bytes=1 << 20, sources=[source]) as writer:
        for number in range(5):
            writer.write(f"clip{number}", {"mp4": bytes(number), "txt": "words"}, 1.5)
    path = tmp_path / "set" / MANIFEST_NAME
    current, indexes = path.read_bytes(), contents(tmp_path / "set", ".index")
    facts = json.loads(current) | {"version": 1}
    for shard in facts["shards"]:
        del shard["index_sha256"]
    path.write_text(json.dumps(facts))
    for name in indexes:
        (tmp_path / "set" / name).unlink()
    index_shards(tmp_path / "set")
    assert path.read_bytes() == current
    assert contents(tmp_path / "set", ".index") == indexes


def test_shards_that_are_not_those_of_the_manifest_are_refused(tmp_path):
    folder = write_foreign(tmp_path / "set")
    index_shards(folder)
    manifest = (folder / MANIFEST_NAME).read_bytes()
    shard = folder / "00001.tar"
    good = shard.read_bytes()
    shard.write_bytes(good.replace(b"clip", b"clap"))
    with pytest.raises(InputError, match=r"00001\.tar: is not the one that manifest\.json describes"):
        index_shards(folder, num_processes=2)
    shard.unlink()
    with pytest.raises(InputError, match=r"00001\.tar: is in manifest\.json but not there"):
        index_shards(folder)
    shard.write_bytes(good)
    (folder / "other.tar").write_bytes(good)
    with pytest.raises(InputError, match=r"other\.tar: is not in manifest\.json"):
        index_shards(folder)
    assert (folder / MANIFEST_NAME).read_bytes() == manifest


def write_names(path: Path, names: list[str]) -> None:
    write_tar(path, [(name, b"data") for name in names])


def test_names_of_every_kind_are_read_through_the_index(tmp_path, caplog):
    """The header in front of a member is compared with the index, which has the name in our spelling."""
    odd = [
        "./dir/a.MP4",
        "b/c.d.mp4",
        "\udce9.mp4",
        "面.mp4",
        f"{'x' * 97}.mp4",
        f"./{'y' * 95}.mp4",
        f"{'z' * 200}.mp4",
    ]
    write_names(tmp_path / "a.tar", [*odd, "./dir/a.txt"])
    before = samples(ShardSet.open(tmp_path))
    assert len(before) == 6  # one has a type that is none
    index_shards(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert samples(ShardSet.open(tmp_path)) == before
    assert not caplog.records


def test_what_cannot_be_read_is_said_and_kept_apart(tmp_path):
    write_names(tmp_path / "a.tar", ["a.mp4", "b.mp4", "b.mp4", "c.mp4"])
    write_names(tmp_path / "b.tar", [f"{number}.mp4" for number in range(4)])
    content = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content[: 3 * 1024 + 512 + 2])
    indexed = index_shards(tmp_path)
    assert indexed.unusable == {"duplicate_key": 1, "shard_truncated": 1}
    assert indexed.damaged == ("b.tar",)
    shards = ShardSet.open(tmp_path)
    problems = [shards.problem(index) for index in range(len(shards))]
    assert problems == [None, "duplicate_key", None, None, None, None, "shard_truncated"]


def test_a_folder_that_cannot_be_indexed_is_named(tmp_path):
    with pytest.raises(InputError, match="none: no such folder"):
        index_shards(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no shards \(\*\.tar\)"):
        index_shards(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"<html>" * 200)
    with pytest.raises(InputError, match=r"a\.tar: is not a tar file"):
        index_shards(tmp_path)
    (tmp_path / ".packing").mkdir()
    with pytest.raises(InputError, match="is being packed"):
        index_shards(tmp_path)
    (tmp_path / ".packing").rmdir()
    write_names(tmp_path / "a.tar", ["a.pth"])
    with pytest.raises(InputError, match=r"a\.tar: has no readable sample"):
        index_shards(tmp_path)
    assert read_manifest(tmp_path) is None

"""Oracle: tarfile writes the same headers and reads what was written; hashlib hashes the file as it lies there."""

import hashlib
import os
import tarfile
from pathlib import Path

import pytest

from ivt2.data.shard_file import OpenShard, sync_shards, tar_header

NAMES = ["a.mp4", "x" * 99 + "y", "x" * 101, "caf\u00e9.json", "clip 1_2.json", "~.txt"]
SIZES = [0, 7, 8, 511, 123_456_789, 8**11 - 1, 8**11]


@pytest.mark.parametrize("name", NAMES)
def test_headers_are_those_of_tarfile(name):
    for size in SIZES:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o444
        assert tar_header(name, size) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


SAMPLES = {
    f"k{number}": {"json": b"{}", "mp4": bytes([number]) * size}
    for number, size in enumerate((10, 70_000, 0, 1_500_000, 65_536, 200_000, 511))
}


def shard(folder):
    """A finished shard of small and large samples."""
    opened = OpenShard(folder, "shard.tar")
    for key, members in SAMPLES.items():
        opened.write(key, members, 0.5)
    info = opened.finish()
    opened.publish(info)
    return info


def test_small_and_large_samples_stand_in_their_order_however_few_bytes_the_system_takes(tmp_path, monkeypatch):
    info = shard(tmp_path)
    content = (tmp_path / info.name).read_bytes()
    assert (info.sha256, info.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert len(content) % tarfile.RECORDSIZE == 0
    with tarfile.open(tmp_path / info.name) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}
    assert list(found.items()) == [
        (f"{key}.{kind}", part) for key, parts in SAMPLES.items() for kind, part in parts.items()
    ]
    (tmp_path / "slow").mkdir()
    write = os.write
    monkeypatch.setattr(os, "writev", lambda file, parts: write(file, b"".join(parts)[:700]))
    monkeypatch.setattr(os, "write", lambda file, part: write(file, part[:100_000]))
    assert shard(tmp_path / "slow") == info
    assert (tmp_path / "slow" / info.name).read_bytes() == content


def test_every_shard_and_index_and_then_the_folder_is_synced_and_an_absent_one_is_said(tmp_path, monkeypatch):
    info = shard(tmp_path)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    sync_shards(tmp_path, [info])
    assert sorted(synced[:-1]) == [str(tmp_path / name) for name in ("shard.index", "shard.tar")]
    assert synced[-1] == str(tmp_path)
    (tmp_path / "shard.index").unlink()
    with pytest.raises(FileNotFoundError):
        sync_shards(tmp_path, [info])

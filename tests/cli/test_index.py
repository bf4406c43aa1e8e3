"""The command, from a set of another tool to one that is fetched from an address."""

import fsspec
import pytest

from ivt2.cli import index
from ivt2.data.remote import ShardCache
from ivt2.data.shards import ShardSet
from tests.data.test_indexing import samples, write_foreign, write_names
from tests.programs import run_main


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command in this process; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        code = run_main(index.main, ["index", *arguments], monkeypatch)
        return code, *capsys.readouterr()

    return command


def test_a_set_of_another_tool_can_be_read_from_an_address(run, tmp_path):
    folder = write_foreign(tmp_path / "set")
    before = samples(ShardSet.open(folder))
    code, out, err = run("shards=set")
    assert code == 0
    assert out == "set: 6 samples in 3 shards are indexed\n"
    assert "3/3" in err
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/indexed", recursive=True)
    try:
        remote = ShardSet.open("memory://indexed", cache=ShardCache(tmp_path / "cache"))
        assert samples(remote) == before
    finally:
        system.rm("/indexed", recursive=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "set"]


def test_what_cannot_be_read_is_said(run, tmp_path):
    (tmp_path / "set").mkdir()
    write_names(tmp_path / "set" / "a.tar", ["a.mp4", "b.mp4", "b.mp4"])
    write_names(tmp_path / "set" / "b.tar", ["c.mp4", "d.mp4"])
    shard = tmp_path / "set" / "b.tar"
    shard.write_bytes(shard.read_bytes()[:1030])
    code, out, _ = run("shards=set", "num_processes=1")
    assert code == 0
    assert out.splitlines() == [
        "set: 3 samples in 2 shards are indexed",
        "1 of them cannot be read: 1 duplicate_key",
        "1 shards are damaged and may have held more, first b.tar",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["shards=none"], "none: no such folder; give the folder of the shards"),
        (["shards=set", "num_processes=0"], "num_processes=0: must be at least 1"),
        ([], "shards: has no value"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, options, expected):
    write_foreign(tmp_path / "set", num_shards=1)
    code, out, err = run(*options)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert out == ""
    assert not (tmp_path / "set" / "manifest.json").exists()

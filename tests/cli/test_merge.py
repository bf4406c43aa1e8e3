import json

import pytest

from ivt2.cli import merge, shards
from ivt2.data.manifest import read_manifest
from tests.programs import run_main


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run a command in this process; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(module, *arguments):
        code = run_main(module.main, ["command", *arguments], monkeypatch)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def media(tmp_path):
    """Four clips, the third of which is not there."""
    (tmp_path / "media").mkdir()
    for name in "abd":
        (tmp_path / "media" / f"{name}.mp4").write_bytes(name.encode())
    lines = [json.dumps({"file": f"{name}.mp4", "caption": name}) for name in "abcd"]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    return ["annotations=clips.jsonl", "media_root=media", "max_samples=1", "budget=1", "num_processes=1"]


def test_parts_become_the_set_that_one_machine_packs(run, media, tmp_path):
    parts = [*media, "output=parts", "num_parts=2"]
    assert run(shards, *media, "output=alone")[0] == 0
    code, out, _ = run(shards, *parts, "part=1")
    assert code == 0
    assert "parts: part 1 of 2, 2 samples in 2 shards" in out
    code, _, err = run(merge, "output=parts")
    assert code == 2
    assert "parts: not finished of 2 parts: 0; run the same command with part=0 num_parts=2" in err
    assert run(shards, *parts, "part=0")[0] == 0
    code, out, _ = run(merge, "output=parts")
    assert code == 0
    assert "parts: 3 samples in 3 shards" in out
    assert "skipped 1 of 4 samples" in out
    alone, parts = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("alone", "parts"))
    assert alone == parts
    assert read_manifest(tmp_path / "parts").samples == 3


def test_a_folder_without_parts_is_named(run):
    code, _, err = run(merge, "output=none")
    assert code == 2
    assert "none: holds no parts of a packing" in err

import json
import subprocess
import sys
from collections import Counter

import pytest

from ivt2.cli import validate
from ivt2.data.findings import Findings
from ivt2.data.shards import ShardWriter
from tests.data.clips import encode
from tests.programs import run_main

CLIP = encode(num_frames=2, height=32, width=32)


@pytest.fixture
def check(monkeypatch, tmp_path, capsys):
    """Run the command in this process; returns (exit status or the message of exit status 1, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = run_main(validate.main, ["validate", *arguments], monkeypatch)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def clips(tmp_path):
    """Four samples in two shards; the third has a broken video."""
    with ShardWriter(tmp_path / "clips", max_samples=2, max_bytes=1 << 20) as writer:
        for number in range(4):
            content = b"<html>" if number == 2 else CLIP
            writer.write(f"clip{number}", {"mp4": content, "json": {"caption": f"clip {number}"}}, 0.08)
    return tmp_path / "clips"


def test_a_set_within_the_budget_can_be_trained_on(check, clips, tmp_path):
    options = ["shards=clips", "decode=1.0", "budget=0.25", "hashes=true"]
    code, out, err = check(*options, "output=out/validation.json")
    assert code == 0
    assert out.splitlines()[-1] == "clips: can be trained on; 3 of 4 samples were decoded"
    rows = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["unusable:", "not_video", "1", "clip2"] in rows
    assert ["hash", "mismatches", "0"] in rows
    assert ["captions:", "under_two_words", "0"] in rows
    assert ["sound:", "without", "3"] in rows
    assert "4/4" in err
    assert "2/2" in err
    text = (tmp_path / "out" / "validation.json").read_text()
    facts = json.loads(text)
    assert facts["usable"]
    assert facts["hash_mismatches"] == {}
    assert facts["unusable"]["reasons"] == {"not_video": 1}
    assert check(*options, "output=out/validation.json", "num_processes=1")[0] == 0
    assert (tmp_path / "out" / "validation.json").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "out"]


def test_beyond_the_budget_it_says_why_in_one_line(check, clips, tmp_path):
    code, _, _ = check("shards=clips", "decode=1.0", "output=validation.json")
    assert code == (
        "clips: should not be trained on: 1 of 4 samples cannot be used (found: 1 not_video), budget=0.05 allows 0: "
        "repair or remove these samples, or raise budget"
    )
    assert not json.loads((tmp_path / "validation.json").read_text())["usable"]


def test_an_estimate_is_said_to_be_one():
    findings = Findings(samples=20, chosen=8, decoded=7, in_text=Counter(text_empty=2), in_media=Counter(corrupt=1))
    assert validate.complaints(findings, {}, 4, 4).startswith(
        "about 4.2 of 20 samples cannot be used (found: 1 corrupt, 2 text_empty), budget=4 allows 4"
    )
    assert validate.complaints(findings, {}, 5, 5) == ""


def test_a_changed_shard_fails_whatever_the_budget(check, clips):
    shard = clips / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[-1] = 1  # of the padding, which no sample has
    shard.write_bytes(content)
    assert check("shards=clips", "budget=4", "decode=0")[0] == 0
    assert check("shards=clips", "budget=4", "decode=0", "hashes=true")[0] == (
        "clips: should not be trained on: 1 shards are not as the manifest says, for example shard-000001.tar "
        "(sha256 differs): restore them or write the set again"
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("shards=none", "none: no such folder"),
        ("decode=1.5", "decode=1.5: give a share in [0, 1]"),
        ("budget=2.0", "budget=2.0: give a ratio in [0, 1]"),
        ("output=clips", "clips: cannot be written"),
        ("output=clips/manifest.json/a", "clips/manifest.json/a: cannot be written"),
        ("decoder_timeout_s=0.0", "timeout_s=0.0"),
        ("num_processes=0", "num_processes=0: must be at least 1"),
        ("num_frames=few", "num_frames: expected int"),
    ],
)
def test_mistakes_are_one_line(check, clips, changed, expected):
    code, out, err = check("shards=clips", changed)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""


def test_the_process_ends_with_status_1_and_the_line_on_stderr(clips):
    command = [sys.executable, "-m", "ivt2.cli.validate", "shards=clips", "decode=1.0"]
    done = subprocess.run(command, cwd=clips.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("clips: should not be trained on: 1 of 4 samples")

import hashlib
import os
from pathlib import Path

import pytest
import torch
import yaml

from ivt2.checkpoint import convert as convert_module
from ivt2.checkpoint import fingerprint, zoo
from ivt2.checkpoint.released import ReleasedFolder
from ivt2.cli import convert
from ivt2.cli.door import CONF
from tests.checkpoint.tiny_releases import ENCODER, build, part, published, release, weights
from tests.programs import run_main


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command in this process, with two tiny releases alone; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        zoo, "RELEASES", {tiny.name: tiny for tiny in (release(), release(name="tiny-8", num_frames=8))}
    )

    def call(*arguments):
        code = run_main(convert.main, ["convert", *arguments], monkeypatch)
        return code, *capsys.readouterr()

    return call


FORTH = ("release=tiny-encoder", "files.model=a.pt", "output=out/a")
BACK = ("direction=to_reference", "folder=out/a", "output=back.pt")


def test_there_and_back(run, tmp_path):
    held = published(tmp_path / "a.pt", wrapper="module")
    code, out, err = run(*FORTH)
    assert code == 0
    first, last = out.splitlines()
    size = (tmp_path / "a.pt").stat().st_size
    digest = hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()
    assert first == (
        f"model: {size / 1e6:.1f} MB of bfloat16, SHA-256 {digest}; "
        "left out 1 (aligning decoders, which only training needs)"
    )
    assert last.startswith("out/a: tiny-encoder in 1 shards, 0.0 MB, SHA-256 of its manifest ")
    assert last.endswith(fingerprint(tmp_path / "out" / "a"))
    for step in ("checking", "writing", "sealing", "verifying"):
        assert step in err
    assert torch.equal(dict(ReleasedFolder.open(Path("out/a")).read())["pos_embed"], weights(build(4, 28))["pos_embed"])
    code, out, err = run(*BACK)
    assert code == 0
    digest = hashlib.sha256((tmp_path / "back.pt").read_bytes()).hexdigest()
    assert out.strip() == f"back.pt: model of tiny-encoder, 0.0 MB, SHA-256 {digest}"
    back = torch.load("back.pt", weights_only=True)
    assert all(torch.equal(value, held[name]) for name, value in back.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "back.pt", "out"]


def test_it_says_what_was_resized_and_what_is_not_the_published_file(run, tmp_path, monkeypatch):
    published(tmp_path / "a.pt")
    tiny = release(part("model", ENCODER, num_bytes=7), name="tiny-8", num_frames=8)
    monkeypatch.setitem(zoo.RELEASES, "tiny-8", tiny)
    arguments = ("release=tiny-8", "files.model=a.pt", "output=out/a")
    code, _, err = run(*arguments)
    assert code == 2
    assert "the published model.pt 7: fetch it again from Example/tiny, or set allow_other_file=true" in err
    code, out, _ = run(*arguments, "allow_other_file=true")
    assert code == 0
    assert "; resized pos_embed; not the published file, which has 7 bytes" in out


def test_again_needs_overwrite(run, tmp_path):
    published(tmp_path / "a.pt")
    assert run(*FORTH)[0] == run(*BACK)[0] == 0
    for arguments, what in ((FORTH, "folder"), (BACK, "file")):
        code, _, err = run(*arguments)
        assert code == 2
        assert f"is there already; choose another {what} or set overwrite=true" in err
        assert run(*arguments, "overwrite=true")[0] == 0


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("release=tiny-encoda", "tiny-encoda: no such release; did you mean tiny-encoder"),
        ("release=null", "release: not set; set it with release=..., python -m ivt2.cli.zoo lists all"),
        ("files.model=none.pt", "none.pt: cannot be read (No such file or directory)"),
        ("files.model=null", "files.model is missing: tiny-encoder is made of files.model (model.pt of Example/tiny)"),
        ("files.text=a.pt", "files.text is unknown: tiny-encoder is made of"),
        ("files.mode=a.pt", "mode"),
        ("output=a.pt/b", "a.pt/b: cannot be written, because of"),
        ("output=???", "output: has no value; set it with output=..."),
        ("direction=back", "direction: expected Literal['from_reference', 'to_reference'], got 'back'"),
        ("direction=to_reference", "folder: not set; set it with folder=..."),
        ("overwrite=1", "overwrite: expected"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, changed, expected):
    published(tmp_path / "a.pt")
    code, out, err = run(*FORTH, changed)
    assert code == 2
    assert expected in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("folder=none", "none: does not exist; name the folder that holds manifest.json"),
        ("folder=a.pt", "a.pt: is a file; an ivt2 release is a folder"),
        ("part=text", "part=text: tiny-encoder has model; choose one of them"),
        ("release=tiny-8", "out/a: holds tiny-encoder, not tiny-8"),
        ("output=out", "out: is a folder; name the file to write"),
    ],
)
def test_mistakes_on_the_way_back(run, tmp_path, changed, expected):
    published(tmp_path / "a.pt")
    assert run(*FORTH)[0] == 0
    code, out, err = run(*BACK, changed)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "out"]


def test_code_in_a_file_is_refused_in_one_line(run, tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "mark"),)

    torch.save({"model": published(tmp_path / "a.pt"), "args": Code()}, tmp_path / "a.pt")
    code, _, err = run(*FORTH)
    assert code == 2
    assert "a.pt: contains code (posix.mkdir), which was not run, and is refused" in err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_disk_that_fills_up_is_one_line(run, tmp_path, monkeypatch):
    published(tmp_path / "a.pt")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module, "write_tensors", fail)
    code, _, err = run(*FORTH)
    assert code == 2
    assert "out/a: cannot be written (No space left on device)" in err.splitlines()[-1]
    assert list((tmp_path / "out").iterdir()) == []


def test_the_configuration_names_every_part():
    names = {part.name for known in zoo.RELEASES.values() for part in known.parts}
    assert set(yaml.safe_load((CONF / "convert.yaml").read_text())["files"]) == names

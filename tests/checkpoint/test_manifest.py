"""What training checkpoints do not test already (``test_folder.py``)."""

import hashlib
import json

import pytest

from ivt2.checkpoint.manifest import MANIFEST, FolderFormat, put_in_place, require_space, sha256, temporary_folder
from ivt2.errors import InputError

FORMAT = FolderFormat(name="test 1", required=frozenset({"a.txt"}), what="thing", remedy="make it again")


def make(folder, text="hello", **others):
    with temporary_folder(folder) as temporary:
        for name, content in {"a.txt": text, **others}.items():
            (temporary / name).write_text(content)
        FORMAT.seal(temporary)
        put_in_place(temporary, folder)


def test_a_sealed_folder_verifies(tmp_path):
    make(tmp_path / "deep" / "x", b="other")
    FORMAT.verify(tmp_path / "deep" / "x")
    entries = FORMAT.entries(tmp_path / "deep" / "x")
    assert entries["a.txt"] == {"sha256": hashlib.sha256(b"hello").hexdigest(), "bytes": 5}
    assert sorted(entries) == ["a.txt", "b"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]


def test_what_is_not_put_in_place_goes(tmp_path):
    make(tmp_path / "x", "old")
    (tmp_path / "x.tmp-killed").mkdir()
    with temporary_folder(tmp_path / "x") as temporary:
        (temporary / "a.txt").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "a.txt").read_text() == "old"


def test_another_format_is_refused(tmp_path):
    make(tmp_path / "x")
    other = FolderFormat(name="other 1", required=frozenset(), what="release", remedy="convert it again")
    with pytest.raises(InputError, match=r"damaged or of another format than 'other 1'; convert it again"):
        other.entries(tmp_path / "x")
    with pytest.raises(InputError, match=r"does not exist; name the folder that holds manifest.json"):
        other.existing(tmp_path / "y")
    with pytest.raises(InputError, match="is a file; an ivt2 release is a folder"):
        other.existing(tmp_path / "x" / "a.txt")


@pytest.mark.parametrize("name", ["../a.txt", "/etc/passwd", "b/a.txt", "", ".", "..", MANIFEST])
def test_entries_are_files_of_the_folder(tmp_path, name):
    make(tmp_path / "x")
    manifest = json.loads((tmp_path / "x" / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"]["a.txt"]
    (tmp_path / "x" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError):
        FORMAT.verify(tmp_path / "x")


@pytest.mark.parametrize("content", ["", "[", "null", '{"format": 1}', "[" * 100_000, "1" * 10_000, "\u00e9"])
def test_a_manifest_that_is_none(tmp_path, content):
    make(tmp_path / "x")
    (tmp_path / "x" / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=r"manifest.json: damaged"):
        FORMAT.entries(tmp_path / "x")


def test_room_and_progress(tmp_path):
    with pytest.raises(InputError, match=r"a thing needs \d+ bytes and \d+ are free; make room on this disk"):
        require_space(tmp_path, 1 << 60, what="a thing")
    require_space(tmp_path, 1, what="a thing")
    (tmp_path / "a").write_bytes(bytes(9_000_000))
    read = []
    assert sha256(tmp_path / "a", on_bytes=read.append) == hashlib.sha256(bytes(9_000_000)).hexdigest()
    assert sum(read) == 9_000_000
    assert len(read) == 3

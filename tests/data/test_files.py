"""Exact: files are written whole, and a lock keeps others out for as long as the file is the one at its path."""

import os

import pytest

from ivt2.data.files import is_at, replace_file, try_lock, write_all


def test_a_replaced_file_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "facts.json"
    for content in (b"first", b"second"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("most", [1, 4, 100])
def test_all_is_written_however_little_the_system_takes_at_once(tmp_path, monkeypatch, most):
    write = os.write
    monkeypatch.setattr(os, "writev", lambda file, parts: write(file, b"".join(parts)[:most]))
    monkeypatch.setattr(os, "write", lambda file, content: write(file, bytes(content[:most])))
    with (tmp_path / "file").open("wb") as file:
        write_all(file.fileno(), [b"abc", b"", b"defgh"])
    assert (tmp_path / "file").read_bytes() == b"abcdefgh"


def test_one_holds_a_lock_at_a_time(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        assert try_lock(first.fileno())
        assert not try_lock(second.fileno())
        first.close()
        assert try_lock(second.fileno())


def test_a_file_that_was_removed_or_renamed_is_at_its_path_no_more(tmp_path):
    path = tmp_path / "file"
    with path.open("w") as file:
        assert is_at(file.fileno(), path)
        path.rename(tmp_path / "other")
        assert not is_at(file.fileno(), path)
        path.touch()
        assert not is_at(file.fileno(), path)

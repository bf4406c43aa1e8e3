"""Exact: what cannot be written is told at once, and nothing is written yet."""

import pytest

from ivt2.cli.output_file import writable
from ivt2.errors import InputError


def test_the_folder_of_a_file_is_made_and_the_file_is_not_touched(tmp_path):
    file = tmp_path / "deep" / "er" / "figures.json"
    assert writable(file) == file
    assert list(file.parent.iterdir()) == []
    file.write_text("earlier")
    writable(file)
    assert file.read_text() == "earlier"


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written; give another output"):
        writable(tmp_path)
    with pytest.raises(InputError, match=r"file/out: cannot be written \(.+\); give another output"):
        writable(tmp_path / "file" / "out")

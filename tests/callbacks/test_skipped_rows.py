"""Exact: the rows of all ranks come together, each once, and a cut leaves what the checkpoint knows of."""

import json

import pytest

from ivt2.callbacks.skipped_rows import SkippedRows
from ivt2.errors import InputError


def write(folder, rank, *keys, kept=(), world=3):
    rows = SkippedRows(folder, "skipped", rank)
    rows.begin(kept, world)
    for key in keys:
        rows.append({"key": key})
    return rows


def read(path):
    return [(row["rank"], row["row"], row["key"]) for row in map(json.loads, path.read_text().splitlines())]


def test_a_row_is_in_the_file_of_its_rank_at_once(tmp_path):
    rows = write(tmp_path / "run", 1, "a", "lone \ud800 surrogate\n")
    assert rows.path.name == "skipped-rank00001.jsonl"
    assert read(rows.path) == [(1, 0, "a"), (1, 1, "lone \ud800 surrogate\n")]


def test_rows_of_all_ranks_come_together_once_whenever_it_is_repeated(tmp_path):
    first = write(tmp_path, 0, "a", "b")
    parts = [write(tmp_path, rank, f"c{rank}", f"d{rank}") for rank in (1, 2)]
    copies = {part.path: part.path.read_bytes() for part in parts}
    expected = [(0, 0, "a"), (0, 1, "b"), (1, 0, "c1"), (1, 1, "d1"), (2, 0, "c2"), (2, 1, "d2")]
    assert read(first.put_together()) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.jsonl"]
    for path, content in copies.items():  # killed before they were removed
        path.write_bytes(content)
    assert read(first.put_together()) == expected
    parts[0].append({"key": "later"})
    first.append({"key": "last"})
    assert read(first.put_together()) == [*expected, (0, 2, "last"), (1, 2, "later")]


@pytest.mark.parametrize("whole", [False, True])
def test_rows_after_the_checkpoint_are_cut_from_one_file_or_from_many(tmp_path, whole):
    first = write(tmp_path, 0, "a", "b", "c")
    for rank, keys in ((1, "de"), (2, "fgh")):
        write(tmp_path, rank, *keys)
    if whole:
        first.put_together()
    kept = [2, 0, 1]  # rank 2 is gone when the run goes on, rank 1 starts anew
    write(tmp_path, 1, "again", kept=kept, world=2)
    first = write(tmp_path, 0, "C", kept=kept, world=2)
    assert sorted(read(first.put_together())) == [(0, 0, "a"), (0, 1, "b"), (0, 2, "C"), (1, 0, "again"), (2, 0, "f")]


def test_a_run_that_starts_from_nothing_leaves_nothing(tmp_path):
    for rank in range(3):
        write(tmp_path, rank, "old")
    (tmp_path / "skipped-test.jsonl").touch()
    for rank in range(2):
        rows = write(tmp_path, rank, world=2)
    assert [path.name for path in tmp_path.iterdir()] == ["skipped-test.jsonl"]
    assert SkippedRows(tmp_path, "skipped", 0).put_together() is None
    assert rows.num_rows == 0


def test_a_run_that_goes_on_elsewhere_has_the_later_rows(tmp_path):
    rows = write(tmp_path, 0, "a", "b", kept=[500])
    assert read(rows.put_together()) == [(0, 500, "a"), (0, 501, "b")]
    assert read(write(tmp_path, 0, kept=[501]).path) == [(0, 500, "a")]


def test_a_torn_row_is_cut(tmp_path):
    rows = write(tmp_path, 0, "a", "b", "c")
    rows.path.write_text(rows.path.read_text()[:-9])
    assert read(write(tmp_path, 0, "C", kept=[2]).path) == [(0, 0, "a"), (0, 1, "b"), (0, 2, "C")]
    rows.path.write_text(rows.path.read_text()[:-1])  # only its end is missing
    assert read(write(tmp_path, 0, "d", kept=[3]).path)[2:] == [(0, 2, "C"), (0, 3, "d")]


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"skipped.jsonl: cannot be written \(File exists\); free some"):
        write(tmp_path / "file", 0, "a")

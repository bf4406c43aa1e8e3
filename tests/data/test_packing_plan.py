"""Exact: every record is dealt once, comes back whole, and its split follows from its file alone."""

import dataclasses

import pytest

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation, FrameFiles
from ivt2.data.order import permutation
from ivt2.data.packing_plan import HashSplit, deal, records_of
from ivt2.errors import InputError

FULL = Annotation(
    file="a/b.mp4",
    captions=("one", "caf\u00e9 \ud800"),
    label="x",
    class_index=3,
    start_s=0.1,
    end_s=2.5,
    options=("yes", "no"),
    answers=(1,),
    turns=({"i": "", "q": "who", "a": "he"},),
    frames=FrameFiles("{}.jpg", 3, 12.5),
    facts={"id": [1, {"deep": None}], "rate": 1e300},
)


def dealt(records, *, split=None, seed=None, size=3):
    return list(deal(records, split=split or HashSplit(), shuffle_seed=seed, max_records=size))


def test_records_come_back_whole():
    assert all(getattr(FULL, field.name) for field in dataclasses.fields(FULL)), "a new field is tried too"
    records = [FULL, Annotation(file="c.mp4"), Skipped("web", "l:3", "json_invalid"), FULL]
    tasks = dealt(records)
    assert [(task.number, task.num_records) for task in tasks] == [(0, 3), (1, 1)]
    back = [pair for task in tasks for pair in records_of(task.text)]
    assert [record for _, record in back] == records
    assert [key for key, _ in back] == ["a_b", "c", "", "a_b_2"]
    again = dealt(records)
    assert again == tasks
    assert len({task.digest for task in tasks}) == 2
    assert dealt([*records[:3], Annotation(file="d.mp4")])[1].digest != tasks[1].digest


def test_what_json_cannot_say_is_a_record_without_meaning():
    (task,) = dealt([Annotation(file="a.mp4", facts={"x": {1}}), Annotation(file="a.mp4")])
    records = [record for _, record in records_of(task.text)]
    assert records == [Skipped("", "a.mp4", "json_invalid"), Annotation(file="a.mp4")]


def test_shuffled_records_stand_as_the_permutation_says():
    files = [f"{number}.mp4" for number in range(20)]
    tasks = dealt([Annotation(file=file) for file in files], seed=7)
    shuffled = [record.file for task in tasks for _, record in records_of(task.text)]
    assert shuffled == [files[place] for place in permutation(20, 7)]
    assert shuffled != files


def test_a_file_is_in_one_split_whatever_else_there_is():
    shares = {"train": 0.7, "val": 0.2, "test": 0.1}
    names = [f"folder/{number}.mp4" for number in range(3000)]
    taken = {take: [name for name in names if name in HashSplit(shares=shares, take=take)] for take in shares}
    assert sorted(name for part in taken.values() for name in part) == sorted(names)
    for take, share in shares.items():
        assert len(taken[take]) / 3000 == pytest.approx(share, abs=0.03)
        backwards = HashSplit(shares=dict(reversed(shares.items())), take=take)
        assert [name for name in names[:300] if name in backwards] == [
            name for name in taken[take] if name in names[:300]
        ]
    assert [name for name in names[:300] if name in HashSplit(shares=shares, take="val", seed=1)] != taken["val"][:57]
    assert ("./folder/1.mp4" in HashSplit(shares=shares, take="train")) == (names[1] in taken["train"])
    records = [Annotation(file=name, label=label) for name in names[:30] for label in "ab"]
    kept = [
        record
        for task in dealt(records, split=HashSplit(shares=shares, take="train"))
        for _, record in records_of(task.text)
    ]
    assert kept == [record for record in records if record.file in taken["train"]]


@pytest.mark.parametrize(
    ("shares", "take", "message"),
    [
        (None, "val", "not one of split.shares"),
        ({"a": 1.0}, None, "not one of split.shares"),
        ({"a": 1.0}, "b", "not one of split.shares"),
        ({"a": 0.5, "b": 0.4}, "a", "together 1"),
        ({"a": 1.5, "b": -0.5}, "a", "above 0"),
    ],
)
def test_shares_that_make_no_split_are_refused(shares, take, message):
    with pytest.raises(InputError, match=message):
        HashSplit(shares=shares, take=take)


def test_without_shares_everything_is_kept():
    split = HashSplit()
    assert "a.mp4" in split
    assert (split.share, split.facts()) == (1.0, None)

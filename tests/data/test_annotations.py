"""Exact: captions that cannot be used are named one by one; records are read line by line."""

import json

import pytest

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation, captions_of, facts_of, segment_of
from ivt2.data.annotations_json import JsonLinesAnnotations
from ivt2.data.ledger import SampleError
from ivt2.data.record_types import AnnotationRecord
from ivt2.errors import InputError

BAD_CAPTIONS = {
    "text_empty": [b'{"caption": ""}', b'{"caption": " \\n\\t"}', b'{"caption": "a", "captions": [""]}'],
    "text_not_a_string": [
        b'{"caption": null}',
        b'{"caption": ["a", "b"]}',
        b'{"caption": 7}',
        b'{"captions": "a"}',
        b'{"captions": [null]}',
        b'{"caption": "a", "captions": null}',
    ],
    "text_too_long": [json.dumps({"caption": "word " * 210_000}).encode()],
    "text_invalid_utf8": [b'{"caption": "caf\xe9"}', b'{"caption": "\\ud800"}'],
    "text_missing": [b"{}", b'{"captions": []}', b'{"label": "x"}'],
    "json_invalid": [b"", b"[1]", b'"a"', b"{", b'{"caption": "a", "x": NaN}', b'{"x":' + b"[" * 100_000],
}
CASES = [(reason, text) for reason, texts in BAD_CAPTIONS.items() for text in texts]


@pytest.mark.parametrize(("reason", "text"), CASES)
def test_captions_that_cannot_be_used(reason, text):
    with pytest.raises(SampleError) as error:
        captions_of({"json": text})
    assert error.value.reason == reason


def test_captions_come_main_one_first_and_once():
    member = json.dumps({"caption": "b", "captions": ["a", "b", "c", "a"]}).encode()
    assert captions_of({"json": member}) == ["b", "a", "c"]
    assert captions_of({"json": b'{"captions": ["a", "b"]}'}) == ["a", "b"]
    assert captions_of({"json": '{"caption": "\u9762"}'.encode()}) == ["\u9762"]


def test_text_members_are_captions_too():
    assert captions_of({"txt": b"a dog"}) == ["a dog"]
    assert captions_of({"txt": b"a dog", "json": b'{"width": 3}'}) == ["a dog"]
    for text, reason in ((b"\xff", "text_invalid_utf8"), (b"", "text_empty"), (b"x" * 10**6, "text_too_long")):
        with pytest.raises(SampleError, match=reason):
            captions_of({"txt": text})
    with pytest.raises(SampleError, match="text_missing"):
        captions_of({"mp4": b"v"})
    assert facts_of({"mp4": b"v"}) == {}


def test_segments():
    assert segment_of({}) == (0.0, float("inf"))
    assert segment_of({"start_s": 1, "end_s": 2.5}) == (1.0, 2.5)
    for facts in ({"start_s": -1}, {"end_s": 0}, {"start_s": 3, "end_s": 2}, {"start_s": "1"}, {"end_s": True}):
        with pytest.raises(SampleError, match="segment_invalid"):
            segment_of(facts)


def lines_of(path):
    return JsonLinesAnnotations(str(path), name="web", record=AnnotationRecord())


def test_records_are_read_line_by_line(tmp_path):
    path = tmp_path / "captions.jsonl"
    good = {"file": "a.mp4", "caption": "one", "captions": ["two"], "label": "x", "start_s": 1.0, "end_s": 2.0, "id": 5}
    lines = [
        json.dumps(good).encode(),
        b"",
        b'{"caption": "a"}',
        b'{"file": "b.mp4"}',
        b"\xff",
        b'{"file": "c", "caption": "d"}',
    ]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    records = list(lines_of(path))
    assert records[0] == Annotation(
        file="a.mp4", captions=("one", "two"), label="x", start_s=1.0, end_s=2.0, facts={"id": 5}
    )
    assert records[1:4] == [
        Skipped("web", "captions.jsonl:3", "file_missing"),
        Skipped("web", "captions.jsonl:4", "text_missing"),
        Skipped("web", "captions.jsonl:5", "text_invalid_utf8"),
    ]
    assert records[4] == Annotation(file="c", captions=("d",))
    assert lines_of(path).count() == 5
    with pytest.raises(InputError, match="give the annotation file"):
        list(lines_of(tmp_path / "absent"))


def test_the_json_member_can_be_read_back_as_a_record(tmp_path):
    record = Annotation(
        file="a.mp4",
        captions=("one", "two"),
        label="run",
        class_index=0,
        start_s=0.0,
        end_s=2.5,
        options=("x", "y"),
        answers=(1,),
        turns=({"i": "", "q": "q", "a": "a"},),
        facts={"id": 3},
    )
    assert AnnotationRecord()({"file": "a.mp4", **json.loads(json.dumps(record.to_member()))}) == record
    assert Annotation(file="a.mp4", options=("x",)).to_member() == {"options": ["x"], "answers": []}
    assert Annotation(file="a.mp4").to_member() == {}


def test_lines_that_are_too_long_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("ivt2.data.annotations.MAX_LINE_BYTES", 40)
    path = tmp_path / "a.jsonl"
    short = b'{"file": "a.mp4", "caption": "%s"}\n'
    path.write_bytes(short % b"a" + short % (b"x" * 200) + short % b"b")
    assert [getattr(record, "reason", "") for record in lines_of(path)] == ["", "line_too_long", ""]


@pytest.mark.parametrize(
    ("reason", "text"),
    [case for case in CASES if case[1].endswith(b"}") and b"\n" not in case[1] and b"label" not in case[1]],
)
def test_bad_records_are_named(tmp_path, reason, text):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"file": "x.mp4", ' + text[1:] if len(text) > 2 else b'{"file": "x.mp4"}')
    assert list(lines_of(path)) == [Skipped("web", "a.jsonl:1", reason)]

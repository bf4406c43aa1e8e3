"""Exact: captions that cannot be used are named one by one; packed files come back with their captions."""

import json

import pytest

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation, captions_of, facts_of, segment_of
from ivt2.data.annotations_json import JsonLinesAnnotations
from ivt2.data.ledger import Ledger, SampleError
from ivt2.data.packing import pack
from ivt2.data.record_types import AnnotationRecord
from ivt2.data.shards import ShardSet
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


@pytest.fixture
def media(tmp_path):
    root = tmp_path / "media"
    (root / "deep.er").mkdir(parents=True)
    for name in ("a.mp4", "deep.er/a.mp4", "b.WEBM", "c.exe"):
        (root / name).write_bytes(name.encode())
    (root / "dir.mp4").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    return root


def record(file, **facts):
    return Annotation(file=file, captions=("one", "two"), **facts)


def test_packing_accounts_for_every_record(media, tmp_path):
    files = [
        "a.mp4",
        "absent.mp4",
        "deep.er/a.mp4",
        "a.mp4",
        "b.WEBM",
        "c.exe",
        "../secret.mp4",
        "/etc/passwd",
        "dir.mp4",
    ]
    records = [record(file, label="x", facts={"duration_s": 2.0}) for file in files]
    records.append(Skipped("web", "l:9", "text_empty"))
    ledger, seen = Ledger(100), []
    manifest = pack(records, media, tmp_path / "set", source="web", ledger=ledger, max_samples=2, on_record=seen.append)
    shards = ShardSet.open(tmp_path / "set")
    assert [shards.key(index) for index in range(4)] == ["a", "deep_er_a", "a_2", "b"]
    assert shards.read(1).members["mp4"] == b"deep.er/a.mp4"
    assert captions_of(shards.read(3).members) == ["one", "two"]
    assert facts_of(shards.read(0).members)["label"] == "x"
    assert shards.types(3) == ("json", "webm")
    assert ledger.by_reason() == {
        "file_missing": 2,
        "file_outside_media_root": 2,
        "file_type_unknown": 1,
        "text_empty": 1,
    }
    assert ledger.seen == 10 == ledger.skipped + manifest.samples
    assert seen == [*files, "l:9"]
    assert [shard.duration_s for shard in manifest.shards] == [4.0, 4.0]


def test_packing_stops_beyond_the_budget_and_without_media(media, tmp_path):
    with pytest.raises(InputError, match="1 file_missing"):
        pack([record("absent.mp4")], media, tmp_path / "set", source="web", ledger=Ledger(0))
    with pytest.raises(InputError, match="no such folder"):
        pack([record("a.mp4")], tmp_path / "absent", tmp_path / "set", source="web", ledger=Ledger(0))
    with pytest.raises(InputError, match="no sample was written"):
        pack([record("absent.mp4")], media, tmp_path / "set", source="web", ledger=Ledger(5))

"""Exact: one sample of each fault, and what is counted of it."""

import json
import tarfile

import numpy as np
import pytest

from ivt2.data import validation
from ivt2.data.isolation import DecoderProcess
from ivt2.data.shards import ShardSet, ShardWriter
from ivt2.data.synthetic_shards import write_synthetic
from ivt2.data.validation import choose_samples, validate
from ivt2.errors import InputError
from tests.data.clips import encode, image_bytes, picture, tone, wav
from tests.data.tars import write_tar

CLIP = encode(num_frames=5, height=32, width=32)  # 0.2 s
TALKIE = encode(num_frames=5, height=32, width=32, audio_codec="aac")
LINK = tarfile.TarInfo("link.mp4")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "elsewhere"


@pytest.fixture(scope="module")
def process():
    process = DecoderProcess()
    yield process
    process.close()


SAMPLES = {
    "good": {"mp4": CLIP, "json": {"caption": "a dog", "captions": ["un chien à côté"]}},
    "sound": {"wav": wav(tone(0.5)), "txt": b"a tone"},
    "image": {"jpg": image_bytes(picture(0), "JPEG"), "txt": "一只狗".encode()},
    "late": {"mp4": CLIP, "json": {"caption": "dog", "start_s": 0.1, "end_s": 9.0}},
    "rounded": {"mp4": CLIP, "json": {"caption": "dog", "end_s": 1.0}},
    "broken_json": {"mp4": CLIP, "json": b"{"},
    "label": {"mp4": CLIP, "json": {"label": "running"}},
    "blank": {"mp4": CLIP, "txt": b" "},
    "dots": {"mp4": CLIP, "txt": b"..."},
    "number": {"mp4": CLIP, "json": {"caption": 5}},
    "latin": {"mp4": CLIP, "txt": b"\xe9"},
    "no_text": {"mp4": CLIP},
    "no_media": {"txt": b"a dog"},
    "backwards": {"mp4": CLIP, "json": {"caption": "a dog", "start_s": 3, "end_s": 2}},
    "behind": {"mp4": CLIP, "json": {"caption": "a dog", "start_s": 5.0}},
    "cut": {"mp4": CLIP[: len(CLIP) // 2], "txt": b"a dog"},
    "page": {"mp4": b"<html>" * 50, "txt": b"a dog"},
    "noise": {"wav": b"noise" * 50, "txt": b"a tone"},
    "drawing": {"jpg": b"noise" * 50, "txt": b"a dog"},
    "link": {"mp4": LINK, "txt": b"a dog"},
    "heard": {"mp4": TALKIE, "json": {"caption": "Barking!", "caption_kinds": {"audio": ["Barking!"], "speech": []}}},
}
IN_TEXT = {
    "duplicate_key": 1,
    "json_invalid": 1,
    "media_missing": 1,
    "member_refused": 1,
    "segment_invalid": 1,
    "text_empty": 2,
    "text_invalid_utf8": 1,
    "text_missing": 2,
    "text_not_a_string": 1,
}
IN_MEDIA = {"not_audio": 1, "not_image": 1, "not_video": 1, "segment_outside": 1, "truncated": 1}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    first = [(f"{key}.{kind}", content) for key, members in SAMPLES.items() for kind, content in members.items()]
    encoded = [(name, json.dumps(each).encode() if isinstance(each, dict) else each) for name, each in first]
    write_tar(folder / "a.tar", encoded)
    again = [("good.mp4", CLIP), ("good.txt", b"the same key"), ("twice.mp4", CLIP), ("twice.mp4", CLIP)]
    write_tar(folder / "b.tar", again)
    return ShardSet.open(folder)


def test_each_fault_is_counted_once_under_its_reason(faulty, process):
    findings = validate(faulty, decode=1.0, process=process)
    facts = findings.to_json()
    assert findings.in_text == IN_TEXT
    assert findings.in_media == IN_MEDIA
    assert facts["samples"] == 23
    assert facts["decoding"] == {"chosen": 23, "decoded": 7, "failed": 5}
    assert facts["unusable"]["found"] == facts["unusable"]["estimated"] == 16
    assert facts["unusable"]["reasons"] == {**IN_TEXT, **IN_MEDIA}
    assert facts["unusable"]["examples"]["text_empty"] == ["blank", "dots"]
    assert facts["duplicate_keys"] == {"good": 2, "twice": 2}
    assert facts["missing_pairs"] == {"media_without_text": 1, "text_without_media": 1}
    assert facts["bad_times"] == {"segment_invalid": 1, "segment_outside": 1, "ends_after_clip": 1}
    assert facts["types"] == {"jpg": 2, "json": 9, "mp4": 16, "txt": 11, "wav": 2}
    # of good two, then sound to rounded, behind to drawing, heard, and the other good one
    lengths, words = [5, 15, 6, 3, 3, 3, 5, 5, 5, 6, 5, 8, 12], [2, 4, 2, 1, 1, 1, 2, 2, 2, 2, 2, 1, 3]
    assert facts["captions"] == {
        "count": 13,
        "empty": 2,
        "under_two_words": 4,
        "per_sample": {"min": 1, "median": 1, "p95": 1.45, "max": 2},
        "words": {"min": 1, "median": 2, "p95": round(float(np.percentile(words, 95)), 3), "max": 4},
        "characters": {"min": 3, "median": 5, "p95": round(float(np.percentile(lengths, 95)), 3), "max": 15},
        "share_not_ascii": 0.1538,
        "kinds": {"audio": 1},
    }
    assert facts["sound"] == {"with_track": 2, "without": 4, "unreadable": 0}
    assert facts["languages"]["captions"] == 12
    assert facts["duration_s"] == {"total": 1.5, "min": 0.2, "median": 0.2, "p95": 0.425, "max": 0.5}
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(("kinds", "missing"), [(["audio"], ["none"]), (["audio", "video"], ["none", "heard"])])
def test_kinds_of_captions_that_are_asked_for_must_be_there(tmp_path, process, kinds, missing):
    stated = {"both": {"audio": ["Barking!"], "video": ["a dog"]}, "heard": {"audio": ["Barking!"], "video": []}}
    with ShardWriter(tmp_path, max_samples=9, max_bytes=1 << 20) as writer:
        writer.write("none", {"mp4": CLIP, "txt": b"a dog"})
        for key, each in stated.items():
            writer.write(key, {"mp4": CLIP, "json": {"caption": "a dog", "caption_kinds": each}})
    shards = ShardSet.open(tmp_path)
    found = validate(shards, decode=0, process=process, caption_kinds=kinds)
    assert found.examples == {"caption_kind_missing": missing}
    assert not validate(shards, decode=0, process=process).reasons


def test_several_processes_find_the_same(faulty, process, monkeypatch):
    expected = validate(faulty, decode=1.0, process=process).to_json()
    monkeypatch.setattr(validation, "_PIECE", 4)
    done = []
    findings = validate(faulty, decode=1.0, process=process, num_processes=3, on_samples=done.append)
    assert done == [4, 4, 4, 4, 4, 1, 2]
    assert json.dumps(findings.to_json()) == json.dumps(expected)


def test_languages_are_told_of_a_part_of_the_captions(tmp_path, process, monkeypatch):
    texts = ["a woman is slicing an onion"] * 5 + ["zwei Männer ringen in einem Ring"] * 3
    with ShardWriter(tmp_path / "set", max_samples=5, max_bytes=1 << 20) as writer:
        for number, text in enumerate(texts):
            writer.write(f"clip{number}", {"mp4": CLIP, "json": {"caption": text, "captions": ["un chien"]}})
    shards = ShardSet.open(tmp_path / "set")
    whole = validate(shards, decode=0, process=process).to_json()["languages"]
    assert whole == {"captions": 8, "shares": {"en": 0.625, "de": 0.375}}
    monkeypatch.setattr(validation, "_MAX_TEXTS", 4)
    part = [validate(shards, decode=0, process=process, num_processes=n).to_json()["languages"] for n in (1, 2)]
    assert part[0]["captions"] == 4
    assert part[0] == part[1]


def test_the_text_of_a_sample_is_read_without_its_media(faulty):
    assert faulty.read(0, ("json", "txt")).members.keys() == {"json"}
    assert faulty.read(0, ()).members == {}
    assert faulty.read(0).members.keys() == {"json", "mp4"}


def test_a_share_of_the_media_is_decoded_and_its_failures_stand_for_all(faulty, process):
    findings = validate(faulty, decode=0.5, process=process, seed=3)
    tried = findings.decoded + findings.in_media.total()
    assert findings.chosen == 12
    assert findings.in_text == IN_TEXT
    assert 0 < tried < 12
    assert findings.unusable == pytest.approx(11 + findings.in_media.total() / tried * 12)
    assert validate(faulty, decode=0.5, process=process, seed=3).to_json() == findings.to_json()


def test_nothing_is_decoded_and_captions_may_be_absent(faulty, process):
    findings = validate(faulty, decode=0, process=process, captions=False)
    assert findings.in_text == {reason: count for reason, count in IN_TEXT.items() if reason != "text_missing"}
    assert findings.chosen == findings.decoded == findings.in_media.total() == 0
    assert findings.unusable == 9
    assert findings.to_json()["duration_s"]["median"] is None


def test_the_clean_embedded_set_has_no_fault(tmp_path, process):
    write_synthetic(tmp_path, split="val", num_clips=6, seed=0, samples_per_shard=4, num_processes=1)
    calls = []
    findings = validate(ShardSet.open(tmp_path), decode=1.0, process=process, on_samples=calls.append)
    assert findings.decoded == sum(calls) == 6
    assert findings.reasons == {}
    assert findings.unusable == findings.late_ends == 0
    assert findings.types["mp4"] == findings.types["json"] == 6


def test_more_samples_include_the_fewer():
    few, more = choose_samples(100, 0.07, seed=1), choose_samples(100, 30, seed=1)
    assert (few.sum(), more.sum()) == (7, 30)
    assert not (few & ~more).any()
    assert (choose_samples(100, 30, seed=2) != more).any()
    assert choose_samples(10, 0.01, seed=0).sum() == 1
    assert choose_samples(10, 50, seed=0).all()


@pytest.mark.parametrize("decode", [-1, -0.1, 1.5])
def test_what_is_no_share_and_no_count_is_refused(decode):
    with pytest.raises(InputError, match=f"decode={decode}: give a share"):
        choose_samples(10, decode, seed=0)


def test_at_least_one_frame(faulty, process):
    with pytest.raises(InputError, match="num_frames=0"):
        validate(faulty, decode=0, process=process, num_frames=0)

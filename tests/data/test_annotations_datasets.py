"""Exact: each dataset's yaml reads a small file in the published format; a bad record of each kind has its reason.

Source of the formats: reference single_modality (lists of clips), multi_modality (json of retrieval, multiple choice
and pretraining), VideoChat2 (instructions), and the pages of the datasets that publish another form.
"""

import json
import re

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ivt2.batch import Skipped
from ivt2.cli.door import CONF
from ivt2.data.annotations import Annotation, FrameFiles
from ivt2.data.annotations_folder import FolderAnnotations
from ivt2.data.annotations_merged import MergedAnnotations
from ivt2.errors import InputError

FIVE = [f"option {number}" for number in range(5)]
SENTENCES = ["A man cooks.", "He eats."]


def clip(file, **says):
    return Annotation(file=file, **says)


def with_class(file, index, **says):
    return Annotation(file=file, class_index=index, **says)


def captioned(file, *captions, **facts):
    return Annotation(file=file, captions=captions, facts=facts)


def path_label(delimiter, num_classes):
    rows = ["a b/c.mp4|3", f"a.mp4|{num_classes - 1}", f"a.mp4|{num_classes}", "a.mp4|-1", "a.mp4|", "a.mp4", "|2"]
    text = "\n".join(rows).replace("a b", "a_b" if delimiter == " " else "a b").replace("|", delimiter)
    first = with_class("a_b/c.mp4" if delimiter == " " else "a b/c.mp4", 3)
    last = "columns_wrong" if delimiter == " " else "label_missing"
    no_file = "columns_wrong" if delimiter == " " else "file_missing"
    good = [first, with_class("a.mp4", num_classes - 1), "label_unknown", "label_unknown"]
    return text, [*good, last, "columns_wrong", no_file]


def intervals():
    text = (
        "a.mp4 30.5 2 7.25 11\n\na.mp4 30 -1 -1 0\nb.mp4 30 9 8 1\nb.mp4 30 x 8 1\nb.mp4 30 40 50 1\nb.mp4 30 1 2 200\n"
    )
    whole = with_class("a.mp4", 0, facts={"duration_s": 30.0})
    part = with_class("a.mp4", 11, start_s=2.0, end_s=7.25, facts={"duration_s": 30.5})
    return text, [part, whole, "segment_invalid", "segment_invalid", "segment_invalid", "label_unknown"]


def frames(template, fps, num_classes):
    text = f"71 36 5\nx/72 0 5\n73 many 5\n74 8 {num_classes}\n75 8\n"
    good = with_class("71", 5, frames=FrameFiles(template, 36, fps))
    return text, [good, "num_frames_invalid", "num_frames_invalid", "label_unknown", "columns_wrong"]


def retrieval(medium="video", file="v/1.mp4"):
    records = [
        {medium: file, "caption": "a dog runs"},
        {medium: file, "caption": ["a dog", "it runs", "a dog"], "asr": "go"},
        {medium: file, "caption": []},
        {medium: file, "caption": ["a", " "]},
        {medium: file, "caption": {"en": "a"}},
        {medium: file},
        {"caption": "a"},
        {medium: None, "caption": "a"},
        "a dog runs",
    ]
    good = [captioned(file, "a dog runs"), captioned(file, "a dog", "it runs", asr="go")]
    bad = ["text_missing", "text_empty", "text_not_a_string", "text_missing", "file_missing", "file_missing"]
    return json.dumps(records), [*good, *bad, "json_invalid"]


def paragraphs(end_s=None):
    records = [{"video": "v_1.mp4", "caption": SENTENCES}, {"video": "v_2.mp4", "caption": "All at once."}]
    records += [{"video": "v_3.mp4", "caption": []}, {"video": "v_4.mp4", "caption": ["a", None]}]
    said = {"v_1.mp4": "A man cooks. He eats.", "v_2.mp4": "All at once."}
    good = [Annotation(file=file, captions=(text,), end_s=end_s) for file, text in said.items()]
    return json.dumps(records), [*good, "text_missing", "text_not_a_string"]


def vatex(captions, other):
    published = {"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["a man", "one man"], "chCap": ["\u4eba"]}
    text = json.dumps([published, {"video": "a.mp4", "caption": "x"}, {"videoID": "b", other: ["y"]}])
    rest = {"videoID": published["videoID"], other: published[other]}
    good = [captioned("Ptf_2VRj-V0_000122_000132.mp4", *captions, **rest), captioned("a.mp4", "x")]
    return text, [*good, "text_missing"]


def choices(field, options, answer, answers):
    good = {"video": "a.mp4", field: options, "answer": answer, "question_id": 7}
    bad = [{**good, "answer": value} for value in (len(options), -1, "b", None, [1, 2], True, [0] * (len(options) + 1))]
    bad += [{**good, field: value} for value in ([], None)]
    record = clip("a.mp4", options=tuple(options), answers=answers, facts={"question_id": 7})
    return json.dumps([good, *bad]), [record, *["answer_invalid"] * 7, *["options_invalid"] * 2]


def ssv2():
    sentence = "holding potato next to bottle"
    good = {"id": "78687", "label": sentence, "template": "Holding [something] next to [something]"}
    records = [{**good, "placeholders": ["potato"]}, {"id": 5, "label": "x"}, {**good, "template": "Flying"}]
    label = "Holding something next to something"
    record = clip("78687.webm", captions=(sentence,), label=label, facts={"id": "78687", "placeholders": ["potato"]})
    flying = clip("78687.webm", captions=(sentence,), label="Flying", facts={"id": "78687"})
    return json.dumps(records), [record, "label_missing", flying]


def k_mash():
    rows = [
        "k710 a.mp4 10.0 -1 -1 700",
        "ssv2 b.webm 4 0 2.5 3",
        "hacs c.mp4 60 9 9 1",
        "mit d.mp4 3",
        "k700 e.mp4 x 0 1 2",
    ]
    first = with_class("a.mp4", 700, facts={"source": "k710", "duration_s": 10.0})
    second = with_class("b.webm", 3, start_s=0.0, end_s=2.5, facts={"source": "ssv2", "duration_s": 4.0})
    return "\n".join(rows), [first, second, "segment_invalid", "columns_wrong", "segment_invalid"]


def internvid():
    good = {
        "YoutubeID": "qD-V_",
        "Start_timestamp": "00:00:03.400",
        "End_timestamp": "00:01:08.133",
        "Caption": "a cat",
    }
    extra = {"Aesthetic_Score": 4.25, "UMT_Score": 0.5}
    bad = [{**good, "End_timestamp": "00:00:03"}, {**good, "Start_timestamp": "a:b"}, {**good, "Caption": ""}]
    bad.append({**good, "YoutubeID": ""})
    record = Annotation(
        file="qD-V_.mp4", captions=("a cat",), start_s=3.4, end_s=68.133, facts={"YoutubeID": "qD-V_", **extra}
    )
    return [{**good, **extra}, *bad], [record, "segment_invalid", "segment_invalid", "text_empty", "file_missing"]


def internvid_lines():
    records, expected = internvid()
    return "\n".join(json.dumps(record) for record in records) + "\n{", [*expected, "json_invalid"]


def internvid_csv():
    rows = ["YoutubeID,Start_timestamp,End_timestamp,Caption,UMT_Score", 'a,0:00:01.5,0:00:02,"a cat, asleep",0.4']
    rows += ["a,3,2,x,0", 'a,1,2,"open,0', "a,1,2"]
    facts = {"YoutubeID": "a", "UMT_Score": "0.4"}
    record = Annotation(file="a.mp4", captions=("a cat, asleep",), start_s=1.5, end_s=2.0, facts=facts)
    return "\n".join(rows), [record, "segment_invalid", "csv_invalid", "columns_wrong"]


def internvid2():
    captions = {"avs_captions": ["all"], "av_captions": "both", "selected_video_caption": "seen"}
    records = [
        {"video": "a.mp4", **captions, "selected_audio_caption": "heard", "asr_captions": "said", "start": 1, "end": 2},
        {"video": "b.mp4", "selected_video_caption": "seen", "selected_audio_caption": "", "asr_captions": None},
        {"video": "c.mp4", "asr_captions": "said"},
        {"video": "d.mp4", "avs_captions": [7]},
    ]
    kinds = {"fused": ["all"], "audio_video": ["both"], "video": ["seen"], "audio": ["heard"], "speech": ["said"]}
    four = ("all", "both", "seen", "heard")
    first = Annotation(file="a.mp4", captions=four, start_s=1.0, end_s=2.0, facts={"caption_kinds": kinds})
    second = captioned("b.mp4", "seen", caption_kinds={"video": ["seen"]})
    return json.dumps(records), [first, second, "text_missing", "text_not_a_string"]


def instructions():
    turn = {"i": "Look.", "q": "What?", "a": "A dog."}
    records = [
        {"video": "a.mp4", "QA": [turn, {"q": "", "a": "Two."}], "start": 0.5, "end": 9},
        {"image": "b.jpg", "QA": [turn]},
        {"video": "c.mp4", "caption": "a dog"},
        {"video": "d.mp4", "QA": []},
        {"video": "d.mp4", "QA": [{"q": "What?"}]},
        {"video": "d.mp4", "QA": ["What?"]},
        {"video": "d.mp4", "QA": [{"q": 1, "a": "x"}]},
        {"video": "d.mp4"},
        {"QA": [turn]},
    ]
    talk = (turn, {"i": "", "q": "", "a": "Two."})
    good = [
        clip("a.mp4", turns=talk, start_s=0.5, end_s=9.0),
        clip("b.jpg", turns=(turn,)),
        captioned("c.mp4", "a dog"),
    ]
    bad = ["turns_invalid", "text_empty", "turns_invalid", "turns_invalid", "text_missing", "file_missing"]
    return json.dumps(records), [*good, *bad]


def esc50():
    rows = ["filename,fold,target,category,esc10,src_file,take", "1-100032-A-0.wav,1,0,dog,True,100032,A"]
    rows.append("1-1-A-50.wav,1,50,cat,True,1,A")
    facts = {"fold": "1", "esc10": "True", "src_file": "100032", "take": "A"}
    return "\n".join(rows), [with_class("1-100032-A-0.wav", 0, label="dog", facts=facts), "label_unknown"]


def audiocaps_csv():
    rows = ["audiocap_id,youtube_id,start_time,caption", '7,r1nicOVtvkQ,130,"A woman talks, then"', "8,,1,x", "9,a,1,"]
    record = captioned(
        "r1nicOVtvkQ.wav", "A woman talks, then", audiocap_id="7", youtube_id="r1nicOVtvkQ", start_time="130"
    )
    return "\n".join(rows), [record, "file_missing", "text_empty"]


def clotho_csv():
    header = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    rows = [header, 'A train.wav,"a, b",c,d,e,f', "B.wav,a,b,c,d"]
    return "\n".join(rows), [captioned("A train.wav", "a, b", "c", "d", "e", "f"), "columns_wrong"]


def plain():
    records = [{"file": "a.mp4", "caption": "x"}, {"file": "b.mp4", "label": "run", "class_index": 2}]
    records += [{"file": "c.mp4", "class_index": -2}, {"file": "c.mp4", "options": ["a"]}, {"file": "c.mp4"}]
    records += [{"file": "c.mp4", "label": "x", "start_s": 3, "end_s": 1}]
    good = [captioned("a.mp4", "x"), with_class("b.mp4", 2, label="run")]
    bad = ["label_invalid", "answer_invalid", "text_missing", "segment_invalid"]
    return "\n".join(map(json.dumps, records)), [*good, *bad]


HOT = [0] * 157
HOT[3] = HOT[156] = 1

DATASETS = {
    **{f"k{number}": path_label(",", number) for number in (400, 600, 700, 710)},
    "mit": path_label(" ", 339),
    "ucf101": path_label(" ", 101),
    "hmdb51": path_label(" ", 51),
    "activitynet": intervals(),
    "hacs": intervals(),
    "k_mash": k_mash(),
    "ssv1": frames("{:05}.jpg", 12.0, 174),
    "ssv2_frames": frames("img_{:05}.jpg", 12.0, 174),
    "hmdb51_frames": frames("img_{:05}.jpg", 30.0, 51),
    "ssv2": ssv2(),
    **dict.fromkeys(("msrvtt", "msvd", "lsmdc"), retrieval()),
    **dict.fromkeys(("audiocaps", "clotho"), retrieval("audio", "a/1.wav")),
    "didemo": paragraphs(end_s=30.0),
    "activitynet_captions": paragraphs(),
    "vatex_en": vatex(["a man", "one man"], "chCap"),
    "vatex_zh": vatex(["\u4eba"], "enCap"),
    "audiocaps_csv": audiocaps_csv(),
    "clotho_csv": clotho_csv(),
    "msrvtt_mc": choices("caption", FIVE, 4, (4,)),
    "ssv2_mc": choices("option", [f"class {number}" for number in range(174)], 173, (173,)),
    "charades_mc": choices("option", [f"class {number}" for number in range(157)], HOT, (3, 156)),
    "internvid": internvid_lines(),
    "internvid_csv": internvid_csv(),
    "internvid2": internvid2(),
    "videochat2": instructions(),
    "esc50": esc50(),
    "jsonl": plain(),
}


def built(dataset, annotations, **arguments):
    """The source that ``conf/source/<dataset>.yaml`` describes."""
    cfg = OmegaConf.load(CONF / "source" / f"{dataset}.yaml")
    return instantiate(OmegaConf.merge(cfg, {"annotations": str(annotations)}, arguments), _convert_="all")


def read(dataset, path, text, **arguments):
    path.write_text(text, encoding="utf-8")
    source = built(dataset, path, **arguments)
    records = list(source)
    assert source.count() == len(records)
    assert all(record.source == source.name for record in records if isinstance(record, Skipped))
    return [record.reason if isinstance(record, Skipped) else record for record in records]


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_dataset_is_read_as_published(dataset, tmp_path):
    text, expected = DATASETS[dataset]
    assert read(dataset, tmp_path / "file", text) == expected


def test_every_dataset_has_a_case():
    without_file = {"folder", "folder_classes"}
    assert {file.stem for file in (CONF / "source").glob("*.yaml")} == set(DATASETS) | without_file


def test_class_names_give_numbers_a_name_and_names_a_number(tmp_path):
    names, path = tmp_path / "names.json", tmp_path / "file"
    names.write_text(json.dumps({"Opening [something]": "1", "Flying": "0"}))
    record = {"num_classes": 2, "class_names": str(names)}
    text = "a.mp4,0\nb.mp4,Opening something\nc.mp4,Closing\nd.mp4,2"
    flying, opening = with_class("a.mp4", 0, label="Flying"), with_class("b.mp4", 1, label="Opening something")
    assert read("k400", path, text, record=record) == [flying, opening, "label_unknown", "label_unknown"]
    template = {"id": 1, "label": "opening a box", "template": "Opening [something]"}
    expected = with_class("1.webm", 1, label="Opening something", captions=("opening a box",), facts={"id": 1})
    assert read("ssv2", path, json.dumps([template]), record=record) == [expected]
    assert read("ucf101", path, "a.avi 1", record={"first_class": 1}) == [with_class("a.avi", 0)]


def test_clips_without_intervals_and_clips_cut_already(tmp_path):
    path = tmp_path / "file"
    assert read("hacs", path, "a.mp4 3", columns=["path", "label"]) == [with_class("a.mp4", 3)]
    record = {"file": ["{YoutubeID}_{n:04}.mp4"], "start": None, "end": None}
    text = json.dumps({"YoutubeID": "a", "n": 7, "Start_timestamp": "0:01", "Caption": "b"})
    assert read("internvid", path, text, record=record) == [
        captioned("a_0007.mp4", "b", YoutubeID="a", n=7, Start_timestamp="0:01")
    ]


BAD_FILES = {
    "k400": {
        b"a.mp4,\xff": "text_invalid_utf8",
        b'"a.mp4,1': "csv_invalid",
        b"a.mp4," + b"9" * 5000: "label_invalid",
        b"a" * 200_000 + b",1": "csv_invalid",
    },
    "jsonl": {
        b'{"file": "a", "caption": "\\ud800"}': "text_invalid_utf8",
        b'{"file": "a", "caption": "b", "start_s": 1e999}': "json_invalid",
        b'{"file": "a", "caption": "b", "id": -1e999}': "json_invalid",
        b'{"file": "a", "caption": "b", "start_s": "1"}': "segment_invalid",
        b'{"file": 3, "caption": "b"}': "file_missing",
        b'{"file": "a", "options": "ab", "answers": [5]}': "answer_invalid",
        b'{"file": "a", "turns": [{"q": "x"}]}': "text_empty",
    },
    "videochat2": {b'[{"video": "{video.__class__}", "caption": ""}]': "text_empty"},
    "msrvtt": {b'[{"video": "a", "caption": "' + b"x" * 20_001 + b'"}]': "text_too_long"},
}


@pytest.mark.parametrize(
    ("dataset", "content", "reason"),
    [(dataset, content, reason) for dataset, cases in BAD_FILES.items() for content, reason in cases.items()],
)
def test_hostile_and_broken_records_have_a_reason(dataset, content, reason, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert [record.reason for record in built(dataset, tmp_path / "file")] == [reason]


@pytest.mark.parametrize(
    ("dataset", "content", "message", "arguments"),
    [
        ("msrvtt", b"{}", "has no list of records", {}),
        ("msrvtt", b"[NaN]", "is no json", {}),
        ("msrvtt", b"[" * 100_000, "is no json", {}),
        ("msrvtt", b"[]\xff", "is no json", {}),
        ("msrvtt", None, "cannot be read", {}),
        ("k400", None, "cannot be read", {}),
        ("k400", b"a,1", "each needs a name of its own", {"columns": ["path", "path"]}),
        ("k400", b"a,1", "give one character", {"delimiter": ", "}),
        ("esc50", b"a,a\n", "each needs a name of its own", {}),
        ("esc50", b"\xff\n", "has no header of columns", {}),
        ("jsonl", None, "cannot be read", {}),
        ("msrvtt", b"[1e999]", "is no json", {}),
        ("msrvtt", b"[]", "has no place for a field", {"record": {"file": ["video.mp4"]}}),
        ("ssv2_frames", b"a 1 1", "has no place for a field", {"record": {"frames": "img.jpg"}}),
        ("ssv2_frames", b"a 1 1", "give a number from 0.01", {"record": {"fps": 0.0}}),
    ],
)
def test_a_file_that_is_not_what_the_source_expects(dataset, content, message, arguments, tmp_path):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises((InputError, InstantiationException), match=message):
        list(built(dataset, tmp_path / "file", **arguments))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\na", "has a name twice"),
        (b"a\n\nb", "an entry that is no name"),
        (b'{"a": "0", "b": "2"}', "does not number its 2 names"),
        (b"[1, 2]", "an entry that is no name"),
        (b"{", "no list of class names"),
        (b"\xff", "no list of class names"),
        (b"", "an entry that is no name"),
        (None, "cannot be read"),
        (b"a\nb\nc", "has 3 names for 2 classes"),
    ],
)
def test_a_list_of_class_names_that_is_none(content, message, tmp_path):
    (tmp_path / "file").write_text("a.mp4,0\n")
    if content is not None:
        (tmp_path / "names").write_bytes(content)
    record = {"num_classes": 2, "class_names": str(tmp_path / "names")}
    with pytest.raises(InputError, match=message):
        list(built("k400", tmp_path / "file", record=record))


def test_lists_under_a_key_and_objects_by_name(tmp_path):
    path, target = tmp_path / "file", "ivt2.data.annotations_json.JsonAnnotations"
    text = json.dumps({"sentences": {"v_1": {"sentences": SENTENCES}, "v_2": 3}})
    record = {"file": ["{id}.mp4"], "captions": ["sentences"], "paragraph": True}
    records = read("msrvtt", path, text, _target_=target, records="sentences", key_field="id", record=record)
    assert records == [captioned("v_1.mp4", "A man cooks. He eats.", id="v_1"), "json_invalid"]


def test_folders(tmp_path):
    for name in ("b/2.mp4", "b/1.mp4", "a/deep/3.mp4", "0.wav", ".hidden/4.mp4", "b/.5.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    every = FolderAnnotations(str(tmp_path), name="folder")
    assert [record.file for record in every] == ["0.wav", "a/deep/3.mp4", "b/1.mp4", "b/2.mp4"]
    assert every.count() == 4
    by_class = FolderAnnotations(str(tmp_path), name="folder", classes=True)
    assert list(by_class)[:3] == [
        Skipped("folder", "0.wav", "label_missing"),
        with_class("a/deep/3.mp4", 0, label="a"),
        with_class("b/1.mp4", 1, label="b"),
    ]
    with pytest.raises(InputError, match="give a folder of media files"):
        FolderAnnotations(str(tmp_path / "absent"), name="folder").count()


def test_captions_of_the_same_clip_are_merged(tmp_path):
    records = [{"file": "a.mp4", "caption": "one", "id": 1}, {"file": "b.mp4", "caption": "x"}, {"caption": "lost"}]
    records += [{"file": "a.mp4", "captions": ["two", "one"], "id": 2}, {"file": "a.mp4", "caption": "c", "end_s": 1.0}]
    records += [{"file": "b.mp4", "caption": "y", "label": "run"}, {"file": "b.mp4", "caption": "z"}]
    (tmp_path / "file").write_text("\n".join(map(json.dumps, records)))
    merged = MergedAnnotations(built("jsonl", tmp_path / "file"))
    assert list(merged) == [
        captioned("a.mp4", "one", "two", id=1),
        captioned("b.mp4", "x", "z"),
        Skipped("jsonl", "file:3", "file_missing"),
        clip("a.mp4", captions=("c",), end_s=1.0),
        clip("b.mp4", captions=("y",), label="run"),
    ]
    assert merged.count() == 5


def test_every_dataset_is_in_the_documentation():
    page = (CONF.parent / "docs" / "packing.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row)}
    assert {file.stem for file in (CONF / "source").glob("*.yaml")} <= named

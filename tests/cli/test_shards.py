import json

import pytest

from ivt2.cli import shards
from ivt2.data.annotations import captions_of, facts_of
from ivt2.data.decode import decode_video
from ivt2.data.manifest import read_manifest
from ivt2.data.shards import ShardSet
from tests.data.clips import encode
from tests.programs import run_main


@pytest.fixture
def pack(monkeypatch, tmp_path, capsys):
    """Run the command in this process; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = run_main(shards.main, ["shards", *arguments], monkeypatch)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def media(tmp_path):
    """Three clips of which the second is not there, and a line that is no json."""
    (tmp_path / "media").mkdir()
    for name in ("a", "c"):
        (tmp_path / "media" / f"{name}.mp4").write_bytes(encode(num_frames=2, height=32, width=32))
    lines = [json.dumps({"file": f"{name}.mp4", "caption": f"Clip {name}"}) for name in "abc"]
    (tmp_path / "clips.jsonl").write_text("\n".join([*lines, "", "{"]) + "\n")
    return ["source=jsonl", "annotations=clips.jsonl", "media_root=media", "output=out/clips"]


def test_it_packs_what_is_there_and_accounts_for_the_rest(pack, media, tmp_path):
    code, out, err = pack(*media, "budget=2", "max_samples=1")
    assert code == 0
    assert "out/clips: 2 samples in 2 shards" in out
    assert "skipped 2 of 4 samples" in out
    rows = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["jsonl", "file_missing", "1"] in rows
    assert ["jsonl", "json_invalid", "1"] in rows
    assert "packing" in err
    assert "4/4" in err
    assert [file.name for file in read_manifest(tmp_path / "out" / "clips").sources] == ["clips.jsonl"]
    written = ShardSet.open("out/clips")
    assert [written.key(i) for i in range(len(written))] == ["a", "c"]
    assert captions_of(written.read(1).members) == ["Clip c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.jsonl", "media", "out"]


def test_again_changes_nothing_and_other_content_needs_overwrite(pack, media, tmp_path):
    assert pack(*media, "budget=2")[0] == 0
    manifest = (tmp_path / "out" / "clips" / "manifest.json").read_bytes()
    assert pack(*media, "budget=2")[0] == 0
    assert (tmp_path / "out" / "clips" / "manifest.json").read_bytes() == manifest
    code, _, err = pack(*media, "budget=2", "max_samples=1")
    assert code == 2
    assert "already holds other shards (with other max_samples); choose another folder or set overwrite=true" in err
    assert (tmp_path / "out" / "clips" / "manifest.json").read_bytes() == manifest
    assert pack(*media, "budget=2", "max_samples=1", "overwrite=true")[0] == 0
    assert len(ShardSet.open("out/clips").names) == 2


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("budget=1", "2 of 4 samples cannot be used (1 file_missing, 1 json_invalid), for example jsonl:b.mp4"),
        ("budget=0.25", "2 of 4 samples cannot be used"),
        ("budget=2.0", "budget=2.0: give a ratio in [0, 1]"),
        ("annotations=none.jsonl", "none.jsonl: cannot be read (No such file or directory)"),
        ("annotations=media", "media: cannot be read (Is a directory)"),
        ("media_root=none", "none: no such folder; give the folder that the files of the annotations lie in"),
        ("output=clips.jsonl/out", "clips.jsonl/out: cannot be written (Not a directory); choose another folder"),
        ("source=jsnl", "source=jsnl: no such source; did you mean 'jsonl'?"),
        ("source.annotations=[1]", "source.annotations: expected str, got [1]"),
        ("source=k400", "3 of 4 samples cannot be used (3 csv_invalid), for example k400:clips.jsonl:1"),
        ("max_samples=0", "max_samples=0, max_bytes=1073741824: both must be at least 1"),
        ("num_processes=0", "num_processes=0, timeout_s=1800.0: both must be above 0"),
        ("part=1", "part=1, num_parts=1: parts are numbered from 0 to num_parts - 1"),
        ("split.take=val", "split.take=val: is not one of split.shares (none); name one of them"),
        ("+preparation.trim=true", "trim=true: video can only be cut between key frames unless it is encoded anew"),
        ("max_sample=5", "max_sample: no such key; did you mean 'max_samples'?"),
        ("output=???", "output: has no value; set it with output=..."),
    ],
)
def test_mistakes_are_one_line(pack, media, changed, expected, tmp_path):
    code, out, err = pack(*media, "budget=2", changed)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "out" / "clips" / "manifest.json").exists()


def test_a_folder_is_not_packed_into_itself(pack, media):
    code, _, err = pack("source=folder", "media_root=media", "output=media/shards")
    assert (code, err.count("\n")) == (2, 1)
    assert "output=media/shards: lies in media_root" in err


def test_options_reach_the_packing(pack, tmp_path):
    (tmp_path / "media").mkdir()
    for name in "abcdefgh":
        (tmp_path / "media" / f"{name}.mp4").write_bytes(name.encode())
    lines = [{"file": f"{name}.mp4", "caption": text} for name in "abcdefgh" for text in ("one", "two")]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    common = ["annotations=clips.jsonl", "media_root=media", "merge_captions=true", "split.shares={a: 0.5, b: 0.5}"]
    packed = {}
    for take in "ab":
        assert pack(*common, f"split.take={take}", "shuffle_seed=1", f"output={take}")[0] == 0
        shards = ShardSet.open(take)
        packed[take] = [shards.key(index) for index in range(len(shards))]
        assert all(captions_of(shards.read(index).members) == ["one", "two"] for index in range(len(shards)))
    assert sorted(packed["a"] + packed["b"]) == list("abcdefgh")
    assert sorted(packed["a"]) != packed["a"] or sorted(packed["b"]) != packed["b"]
    facts = read_manifest(tmp_path / "a").packing
    assert facts["split"] == {"shares": {"a": 0.5, "b": 0.5}, "take": "a", "seed": 0}
    assert (facts["shuffle_seed"], facts["preparation"]["video"]) == (1, None)


def test_two_datasets_come_back_from_their_shards(pack, tmp_path):
    videos = {name: encode(num_frames=4, height=32, width=32, gop=gop) for name, gop in (("a", 1), ("b", 2))}
    (tmp_path / "media" / "run").mkdir(parents=True)
    for name, data in videos.items():
        (tmp_path / "media" / "run" / f"{name}.mp4").write_bytes(data)
    (tmp_path / "k400.csv").write_text("run/a.mp4,17\nrun/b.mp4,400\nrun/b.mp4,399\n")
    (tmp_path / "names.txt").write_text("\n".join(f"class {number}" for number in range(400)))
    (tmp_path / "didemo.json").write_text(json.dumps([{"video": "run/b.mp4", "caption": ["He runs.", "He stops."]}]))
    common = ["media_root=media", "budget=1"]
    names = "source.record.class_names=names.txt"
    assert pack("source=k400", "annotations=k400.csv", "output=k400", names, *common)[0] == 0
    assert pack("source=didemo", "annotations=didemo.json", "output=didemo", *common)[0] == 0
    assert pack("source=folder_classes", "output=folder", *common)[0] == 0
    kinetics, paragraphs, folder = ShardSet.open("k400"), ShardSet.open("didemo"), ShardSet.open("folder")
    assert [facts_of(kinetics.read(index).members) for index in range(2)] == [
        {"label": "class 17", "class_index": 17},
        {"label": "class 399", "class_index": 399},
    ]
    assert kinetics.read(0).members["mp4"] == videos["a"]
    assert captions_of(paragraphs.read(0).members) == ["He runs. He stops."]
    assert decode_video(paragraphs.read(0).members["mp4"], lambda length, _: range(length)).frames.shape[0] == 4
    assert [facts_of(folder.read(index).members)["label"] for index in range(len(folder))] == ["run", "run"]

"""Exact: packed files come back with what was said of them; what cannot be packed has a reason. Oracle: Pillow."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation, FrameFiles, captions_of, facts_of
from ivt2.data.decode import decode_video
from ivt2.data.ledger import Ledger
from ivt2.data.packing import pack
from ivt2.data.shards import ShardSet
from ivt2.errors import InputError
from tests.data.clips import encode, picture


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


def test_a_file_of_many_records_is_packed_under_numbered_keys(media, tmp_path):
    records = [record("a.mp4") for _ in range(3)] + [record("deep.er/a.mp4"), record("deep_er/a.mp4")]
    (media / "deep_er").mkdir()
    (media / "deep_er" / "a.mp4").write_bytes(b"x")
    pack(records, media, tmp_path / "set", source="web", ledger=Ledger(0))
    shards = ShardSet.open(tmp_path / "set")
    assert [shards.key(index) for index in range(5)] == ["a", "a_2", "a_3", "deep_er_a", "deep_er_a_2"]


def test_names_and_facts_of_any_kind_do_not_end_the_packing(media, tmp_path):
    names = ["", ".", "a.mp4\0", "\ud800.mp4", "x" * 5000 + ".mp4", "a.mp4/b.mp4"]
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    facts = [{"id": "\ud800"}, {"id": float("nan")}, {"id": {1}}, {"id": deep}]
    odd = [*map(record, names), *(record("a.mp4", facts=fact) for fact in facts)]
    odd.append(Annotation(file=".", label="x", frames=FrameFiles("{}.jpg", 1, 1.0)))
    good = [record("a.mp4", facts={"duration_s": value}) for value in (True, -1, "3", None)]
    ledger, records = Ledger(len(odd)), [*odd, *good]
    manifest = pack(records, media, tmp_path / "set", source="web", ledger=ledger)
    assert manifest.shards[0].duration_s == 0
    assert ledger.skipped == len(odd)
    assert {"text_invalid_utf8": 1, "json_invalid": 3}.items() <= ledger.by_reason().items()
    assert captions_of(ShardSet.open(tmp_path / "set").read(3).members) == ["one", "two"]


def jpeg(number, size=64, format_name="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(picture(number, size, size)).save(file, format_name, quality=95, subsampling=0, **options)
    return file.getvalue()


@pytest.fixture
def frames(tmp_path):
    """Five pictures in folder ``good``, and folders that cannot be packed."""
    root = tmp_path / "frames"
    bad = {"good": {}, "gap": {3: None}, "sizes": {2: jpeg(2, 32)}, "broken": {4: b"no picture"}, "cut": {1: b""}}
    for folder, instead in {**bad, "png": {1: jpeg(1, format_name="PNG")}}.items():
        (root / folder).mkdir(parents=True)
        for number in range(1, 6):
            content = instead.get(number, jpeg(number, progressive=number == 5))
            if content is not None:
                (root / folder / f"img_{number:05}.jpg").write_bytes(content)
    return root


def test_frame_folders_become_clips_without_a_change_of_their_bytes(frames, tmp_path):
    folders = ["good", "gap", "sizes", "broken", "cut", "png", "absent", "../frames/good"]
    records = [Annotation(file=name, class_index=7, frames=FrameFiles("img_{:05}.jpg", 5, 12.0)) for name in folders]
    records.append(Annotation(file="good", class_index=7, frames=FrameFiles("../good/img_{:05}.jpg", 5, 12.0)))
    ledgers = [Ledger(8), Ledger(8)]
    manifests = [
        pack(records, frames, tmp_path / name, source="ssv2", ledger=ledger)
        for name, ledger in zip(("one", "two"), ledgers, strict=True)
    ]
    assert manifests[0] == manifests[1]
    reasons = {"file_missing": 2, "file_outside_media_root": 2, "frame_invalid": 3, "frame_sizes_differ": 1}
    assert ledgers[0].by_reason() == reasons
    members = ShardSet.open(tmp_path / "one").read(0).members
    assert facts_of(members) == {"class_index": 7}
    assert all(jpeg(number, progressive=number == 5) in members["mkv"] for number in range(1, 6))
    decoded = decode_video(members["mkv"], lambda length, _: range(length)).frames.permute(0, 2, 3, 1).numpy()
    expected = np.stack([np.asarray(Image.open(frames / "good" / f"img_{n:05}.jpg")) for n in range(1, 6)])
    assert np.abs(decoded.astype(int) - expected).max() <= 4
    later = decode_video(members["mkv"], lambda length, _: range(length), start_s=2 / 12)
    assert len(later.frames) == 3


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_shards_of_video2dataset_and_img2dataset_are_read_as_they_are(tmp_path):
    """Folders as these tools leave them: numbered shards, a report and a table beside each."""
    facts = {
        "url": "https://host/a.mp4",
        "caption": "a dog",
        "key": "000000001",
        "status": "success",
        "clips": [[0, 2]],
    }
    clip, image = encode(num_frames=4, height=32, width=32), jpeg(1)
    texts = {"txt": b"a dog", "json": json.dumps({**facts, "error_message": None}).encode()}
    for tool, kind, content in (("video", "mp4", clip), ("img", "jpg", image)):
        folder = tmp_path / tool
        folder.mkdir()
        sample = {f"000000001.{name}": text for name, text in {kind: content, **texts}.items()}
        write_tar(folder / "00000.tar", sample)
        write_tar(folder / "00001.tar", {f"000010000_00001.{kind}": content, "000010000_00001.txt": b"a cat"})
        (folder / "00000.parquet").write_bytes(b"PAR1")
        (folder / "00000_stats.json").write_text("{}")
        shards = ShardSet.open(folder)
        assert [shards.key(index) for index in range(2)] == ["000000001", "000010000_00001"]
        assert [captions_of(shards.read(index).members) for index in range(2)] == [["a dog"], ["a cat"]]
        assert shards.read(0).members[kind] == content
        assert facts_of(shards.read(0).members)["url"] == "https://host/a.mp4"

"""Exact: packed files come back with what was said of them; what cannot be packed has a reason; the bytes depend on
neither processes, parts nor kills. Whole: a packing that is killed goes on.
"""

import faulthandler
import json
import mmap
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation, FrameFiles, captions_of, facts_of
from ivt2.data.ledger import Ledger, SampleError
from ivt2.data.manifest import MANIFEST_NAME, verify
from ivt2.data.packing import SKIPPED_NAME, merge_parts, pack
from ivt2.data.packing_plan import HashSplit
from ivt2.data.shards import ShardSet
from ivt2.errors import InputError
from tests.data.clips import encode
from tests.data.tars import write_tar
from tests.data.test_media_files import jpeg


class Records(list):
    """A source."""

    name = "web"

    def count(self):
        return len(self)


class Keep:
    """Leaves files as they are."""

    def __init__(self, **facts):
        self._facts = facts

    def __call__(self, kind, data, record):
        return {kind: data}, record

    def facts(self):
        return self._facts


def packed(records, media_root, folder, budget=0, **options):
    """Pack with one process; returns manifest and ledger."""
    ledger = options.pop("ledger", Ledger(budget))
    settings = {"preparation": Keep(), "num_processes": 1, **options}
    return pack(Records(records), media_root, folder, ledger=ledger, **settings), ledger


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


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
    seen = []
    manifest, ledger = packed(records, media, tmp_path / "set", 100, max_samples=4, on_progress=seen.append)
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
    lines = [json.loads(line) for line in (tmp_path / "set" / SKIPPED_NAME).read_text().splitlines()]
    assert [line["key"] for line in lines] == [files[1], *files[5:9], "l:9"]
    assert lines[-1]["reason"] == "text_empty"
    assert seen[-1] == 10
    assert [(shard.name, shard.samples, shard.duration_s) for shard in manifest.shards] == [
        ("shard-000000.tar", 3, 6.0),
        ("shard-000001.tar", 1, 2.0),
    ]


def test_packing_stops_beyond_the_budget_and_without_media(media, tmp_path):
    with pytest.raises(InputError, match="1 file_missing"):
        packed([record("absent.mp4")], media, tmp_path / "set")
    with pytest.raises(InputError, match="no such folder"):
        packed([record("a.mp4")], tmp_path / "absent", tmp_path / "set")
    with pytest.raises(InputError, match="no sample was written"):
        packed([record("absent.mp4")], media, tmp_path / "set", 5)


def test_a_file_of_many_records_is_packed_under_numbered_keys(media, tmp_path):
    records = [record("a.mp4") for _ in range(3)] + [record("deep.er/a.mp4"), record("deep_er/a.mp4")]
    (media / "deep_er").mkdir()
    (media / "deep_er" / "a.mp4").write_bytes(b"x")
    packed(records, media, tmp_path / "set")
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
    manifest, ledger = packed([*odd, *good], media, tmp_path / "set", len(odd))
    assert manifest.shards[0].duration_s == 0
    assert ledger.skipped == len(odd)
    assert {"text_invalid_utf8": 1, "json_invalid": 3}.items() <= ledger.by_reason().items()
    assert captions_of(ShardSet.open(tmp_path / "set").read(3).members) == ["one", "two"]


def clips(folder, num, size=300):
    folder.mkdir(parents=True)
    for number in range(num):
        (folder / f"{number}.mp4").write_bytes(bytes([number]) * (size + 50 * number))
    return [record(f"{number}.mp4", facts={"duration_s": 1.5}) for number in range(num)]


def test_a_task_beyond_the_byte_limit_makes_several_shards_in_the_order_of_their_names(tmp_path):
    records = clips(tmp_path / "media", 5)
    manifest, _ = packed(records, tmp_path / "media", tmp_path / "set", max_samples=3, max_bytes=1000)
    names = [shard.name for shard in manifest.shards]
    assert names == ["shard-000000.tar", "shard-000000_1.tar", "shard-000001.tar", "shard-000001_1.tar"]
    assert sorted(names) == names
    shards = ShardSet.open(tmp_path / "set")
    assert [shards.key(index) for index in range(5)] == [str(number) for number in range(5)]
    assert all(check.problem is None for check in verify(tmp_path / "set"))


def test_the_bytes_depend_on_neither_processes_nor_parts(tmp_path):
    media = tmp_path / "media"
    records = [*clips(media, 7), Skipped("web", "l:9", "text_empty"), record("absent.mp4")]
    manifest, alone = packed(records, media, tmp_path / "alone", 2, max_samples=2)
    _, several = packed(records, media, tmp_path / "several", 2, max_samples=2, num_processes=3)
    for part in (2, 0, 1):
        with pytest.raises(InputError, match=r"not finished of 3 parts|holds no parts of a packing"):
            merge_parts(tmp_path / "parts", Ledger(1.0))
        one, _ = packed(records, media, tmp_path / "parts", 2, max_samples=2, part=part, num_parts=3)
        assert not (tmp_path / "parts" / MANIFEST_NAME).exists()
        assert [shard.name for shard in one.shards] == [f"shard-{n:06d}.tar" for n in range(part, 4, 3)]
    joined = Ledger(1.0)
    assert merge_parts(tmp_path / "parts", joined) == manifest == merge_parts(tmp_path / "parts", Ledger(1.0))
    assert content(tmp_path / "alone") == content(tmp_path / "several") == content(tmp_path / "parts")
    assert alone.state_dict() == several.state_dict() == joined.state_dict()
    assert alone.by_reason() == {"file_missing": 1, "text_empty": 1}


def test_parts_of_other_options_are_not_joined(tmp_path):
    media = tmp_path / "media"
    records = clips(media, 4)
    packed(records, media, tmp_path / "set", max_samples=2, num_parts=2)
    with pytest.raises(InputError, match=r"holds part of another packing \(with other preparation\)"):
        packed(records, media, tmp_path / "set", max_samples=2, part=1, num_parts=2, preparation=Keep(gop=1))
    with pytest.raises(InputError, match=r"holds part of another packing \(with other num_parts\)"):
        packed(records, media, tmp_path / "set", max_samples=2)
    packed([*records[:2], records[3]], media, tmp_path / "set", max_samples=2, part=1, num_parts=2)
    with pytest.raises(InputError, match="not of the same records"):
        merge_parts(tmp_path / "set", Ledger(1.0))


def test_parts_are_packed_anew_one_by_one(tmp_path):
    media = tmp_path / "media"
    records = clips(media, 4)
    packed(records, media, tmp_path / "set", max_samples=1)
    for part in (0, 1):
        options = {"max_samples": 2, "part": part, "num_parts": 2, "overwrite": True}
        packed(records, media, tmp_path / "set", **options)
    assert [shard.samples for shard in merge_parts(tmp_path / "set", Ledger(0)).shards] == [2, 2]
    assert sorted(content(tmp_path / "set")) == [
        MANIFEST_NAME,
        *(f"shard-00000{n}.{kind}" for n in (0, 1) for kind in ("index", "tar")),
    ]


def test_what_is_packed_again_from_the_same_changes_nothing_and_the_difference_is_named(tmp_path):
    media, folder = tmp_path / "media", tmp_path / "set"
    records = clips(media, 4)
    (tmp_path / "a.txt").write_text("a")
    options = {"annotation_files": [tmp_path / "a.txt"], "shuffle_seed": 3}
    manifest, _ = packed(records, media, folder, **options)
    before = content(folder)
    (folder / ".packing").mkdir()  # killed between its last two steps
    assert packed(records, media, folder, **options)[0] == manifest
    assert content(folder) == before
    for other, name in (
        ({"max_samples": 2}, "max_samples"),
        ({"shuffle_seed": 4}, "shuffle_seed"),
        ({"preparation": Keep(gop=15)}, "preparation"),
        ({"split": HashSplit(shares={"a": 1.0}, take="a")}, "split"),
        ({"annotation_files": []}, "annotation files"),
    ):
        with pytest.raises(InputError, match=rf"with other {name}\).*overwrite=true"):
            packed(records, media, folder, **options | other)
    with pytest.raises(InputError, match=r"with other records\)"):
        packed([*records[:3], replace(records[3], label="x")], media, folder, **options)
    assert content(folder) == before
    (folder / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"shard-000000\.tar: is gone or changed"):
        packed(records, media, folder, **options)
    packed(records, media, folder, **options, overwrite=True)
    assert content(folder) == before


def test_shards_of_another_tool_are_left_alone(tmp_path):
    records = clips(tmp_path / "media", 1)
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "00000.tar", [("a.txt", b"x")])
    with pytest.raises(InputError, match="already holds other shards"):
        packed(records, tmp_path / "media", tmp_path / "set")


class Counted(Keep):
    """Counts, in a file, how often each file was prepared; one of them may not come to an end."""

    def __init__(self, notes, fatal=""):
        super().__init__()
        self.notes, self.fatal = notes, fatal

    def __call__(self, kind, data, record):
        with self.notes.open("a") as notes:
            notes.write(f"{record.file} ")
        if record.file == self.fatal:
            raise SampleError("corrupt")
        return {kind: data}, record


def test_beyond_the_budget_what_is_done_stays_and_a_larger_one_goes_on(tmp_path):
    media, folder, notes = tmp_path / "media", tmp_path / "set", tmp_path / "notes"
    records = clips(media, 6)
    bad = Counted(notes, "3.mp4")
    with pytest.raises(InputError, match=r"1 corrupt\), for example web:3\.mp4"):
        packed(records, media, folder, max_samples=2, preparation=bad)
    assert not (folder / MANIFEST_NAME).exists()
    with pytest.raises(InputError, match="not packed to the end"):
        ShardSet.open(folder)
    manifest, ledger = packed(records, media, folder, 1, max_samples=2, preparation=bad)
    assert ledger.by_reason() == {"corrupt": 1}
    assert [shard.samples for shard in manifest.shards] == [2, 1, 2]
    assert sorted(notes.read_text().split()) == sorted(entry.file for entry in records)


def test_a_file_that_was_repaired_is_tried_again(tmp_path):
    media, folder, notes = tmp_path / "media", tmp_path / "set", tmp_path / "notes"
    records = clips(media, 4)
    (media / "3.mp4").rename(media / "gone")
    with pytest.raises(InputError, match="1 file_missing"):
        packed(records, media, folder, max_samples=2, preparation=Counted(notes))
    (media / "gone").rename(media / "3.mp4")
    assert packed(records, media, folder, max_samples=2, preparation=Counted(notes))[0].samples == 4
    assert notes.read_text().split() == ["0.mp4", "1.mp4", "2.mp4", "2.mp4", "3.mp4"]


def test_what_an_interruption_or_a_power_cut_left_is_put_right(tmp_path):
    media, folder = tmp_path / "media", tmp_path / "set"
    records = clips(media, 6)
    packed(records, media, tmp_path / "whole", max_samples=2)
    with pytest.raises(InputError, match="1 corrupt"):
        packed(records, media, folder, max_samples=2, preparation=Counted(tmp_path / "notes", "5.mp4"))
    with pytest.raises(InputError, match=r"another packing \(with other records\)"):
        packed(records[1:], media, folder, max_samples=2, preparation=Counted(tmp_path / "notes"))
    os.truncate(folder / "shard-000000.tar", 512)
    (folder / "shard-000001.index").write_bytes(b"")
    for stray in (".shard-000001.tar.partial", "shard-000009_0001.tar", "shard-000009.index"):
        (folder / stray).write_bytes(b"x")
    os.utime(media / "5.mp4")
    packed(records, media, folder, max_samples=2)
    assert content(folder) == content(tmp_path / "whole")


class Uneven(Keep):
    """The first file takes longer to be found bad than the second."""

    def __call__(self, kind, data, record):
        time.sleep(0.3 if record.file == "0.mp4" else 0)
        raise SampleError("corrupt" if record.file == "0.mp4" else "truncated")


def test_records_are_accounted_for_in_their_order(tmp_path):
    records = clips(tmp_path / "media", 2)
    with pytest.raises(InputError, match=r"1 of 1 samples cannot be used \(1 corrupt\)"):
        packed(records, tmp_path / "media", tmp_path / "set", max_samples=1, num_processes=2, preparation=Uneven())


class Deadly(Keep):
    """Ends or stops its process at some files."""

    def __init__(self, aborts=(), sleeps=(), notes=None):
        super().__init__()
        self.aborts, self.sleeps, self.notes = aborts, sleeps, notes

    def __call__(self, kind, data, record):
        if record.file in self.aborts:
            faulthandler.disable()
            os.abort()
        if record.file in self.sleeps:
            time.sleep(60)
        if self.notes is not None and not self.notes.exists():
            self.notes.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {kind: data}, record


def test_a_record_that_ends_or_stops_a_worker_is_the_only_one_lost(tmp_path):
    media = tmp_path / "media"
    records = clips(media, 8)
    expected, _ = packed([entry for entry in records if entry.file not in {"1.mp4", "6.mp4"}], media, tmp_path / "good")
    manifest, ledger = packed(
        records, media, tmp_path / "set", 2, preparation=Deadly(["1.mp4"], ["6.mp4"]), timeout_s=2.0
    )
    assert ledger.by_reason() == {"decoder_crashed": 1, "decoder_timeout": 1}
    assert manifest.shards == expected.shards


def test_a_worker_that_someone_else_ends_costs_nothing(tmp_path):
    records = clips(tmp_path / "media", 3)
    manifest, ledger = packed(
        records, tmp_path / "media", tmp_path / "set", preparation=Deadly(notes=tmp_path / "killed")
    )
    assert (tmp_path / "killed").exists()
    assert (manifest.samples, ledger.skipped) == (3, 0)


class Broken(Keep):
    """Has a defect."""

    def __call__(self, kind, data, record):
        raise KeyError(record.file)


def test_a_defect_is_no_fault_of_the_record(tmp_path, capfd):
    records = clips(tmp_path / "media", 2)
    with pytest.raises(RuntimeError, match="failed at record 0 of task 0"):
        packed(records, tmp_path / "media", tmp_path / "set", 2, preparation=Broken())
    assert "KeyError: '0.mp4'" in capfd.readouterr().err


class Slow(Keep):
    """Takes its time."""

    def __call__(self, kind, data, record):
        time.sleep(0.004)
        return {kind: data}, record


def killed_at(number, pack_it):
    """Run in another process, which is killed at its n-th touch of the disk, its workers' counted too.

    Returns whether it came to its end before.
    """
    counter = mmap.mmap(-1, 8)

    def watched():
        me = os.getpid()

        def touch(event, arguments):
            if event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir"} or (
                event == "open" and "set" in str(arguments[0]) and arguments[2] & os.O_WRONLY
            ):
                counter[0] += 1
                if counter[0] == number:
                    os.kill(me, signal.SIGKILL)

        sys.addaudithook(touch)
        pack_it()

    process = multiprocessing.get_context("fork").Process(target=watched)
    process.start()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode == 0


def test_wherever_it_is_killed_the_next_run_makes_the_same(tmp_path):
    media = tmp_path / "media"
    records = [*clips(media, 7), record("absent.mp4")]
    options = {"budget": 1, "max_samples": 3, "max_bytes": 1000}
    packed(records, media, tmp_path / "whole", **options)
    expected = content(tmp_path / "whole")
    for number in range(2, 100, 3):
        folder = tmp_path / f"set{number}"
        ended = killed_at(number, lambda at=folder: packed(records, media, at, **options))
        _, ledger = packed(records, media, folder, **options)
        assert content(folder) == expected
        assert ledger.seen in {8, 0}
        if ended:
            break
    assert number > 30


def test_killed_again_and_again_it_comes_to_its_end(tmp_path):
    media, folder = tmp_path / "media", tmp_path / "set"
    records = clips(media, 24, size=100)
    options = {"max_samples": 2, "num_processes": 2, "preparation": Slow()}
    packed(records, media, tmp_path / "whole", **options)
    for kills in range(100):
        process = multiprocessing.get_context("fork").Process(
            target=packed, args=(records, media, folder), kwargs=options
        )
        process.start()
        process.join(0.05 + 0.01 * kills)
        ended = process.exitcode == 0
        process.kill()
        process.join()
        if ended:
            break
    assert kills > 0
    assert content(folder) == content(tmp_path / "whole")


def test_two_processes_do_not_pack_into_one_folder(tmp_path):
    media, folder = tmp_path / "media", tmp_path / "set"
    records = clips(media, 2)
    options = {"preparation": Deadly(sleeps=["1.mp4"])}
    process = multiprocessing.get_context("fork").Process(target=packed, args=(records, media, folder), kwargs=options)
    process.start()
    while not (folder / ".packing" / "plan.json").exists():
        time.sleep(0.01)
    with pytest.raises(InputError, match="another process packs into it"):
        packed(records, media, folder, **options)
    process.kill()
    process.join()
    assert packed(records, media, folder)[0].samples == 2


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
        write_tar(folder / "00000.tar", sample.items())
        write_tar(folder / "00001.tar", [(f"000010000_00001.{kind}", content), ("000010000_00001.txt", b"a cat")])
        (folder / "00000.parquet").write_bytes(b"PAR1")
        (folder / "00000_stats.json").write_text("{}")
        shards = ShardSet.open(folder)
        assert [shards.key(index) for index in range(2)] == ["000000001", "000010000_00001"]
        assert [captions_of(shards.read(index).members) for index in range(2)] == [["a dog"], ["a cat"]]
        assert shards.read(0).members[kind] == content
        assert facts_of(shards.read(0).members)["url"] == "https://host/a.mp4"

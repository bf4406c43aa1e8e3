"""Exact: what is written, and that it is written once."""

import io
import json
import tarfile

import av
import numpy as np
import pytest

from ivt2.data.audio import decode_audio
from ivt2.data.synthetic import make_scenes
from ivt2.data.synthetic_media import encode_scene
from ivt2.data.synthetic_render import TONE_HZ
from ivt2.data.synthetic_shards import FACTS_NAME, write_synthetic
from ivt2.errors import InputError


def write(folder, **changed):
    return write_synthetic(
        folder, **{"split": "train", "num_clips": 10, "seed": 0, "samples_per_shard": 4, "num_processes": 1, **changed}
    )


def members(folder):
    read = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            read |= {entry.name: tar.extractfile(entry).read() for entry in tar}
    return read


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


def test_shards_hold_a_clip_and_its_facts(tmp_path):
    manifest = write(tmp_path)
    assert [shard.samples for shard in manifest.shards] == [4, 4, 2]
    read, scenes = members(tmp_path), make_scenes("train", 10, 0)
    assert list(read) == [f"{scene.key}.{kind}" for scene in scenes for kind in ("json", "mp4")]
    for scene in scenes:
        assert json.loads(read[f"{scene.key}.json"]) == scene.facts()
        assert read[f"{scene.key}.mp4"] == encode_scene(scene, 64)
    assert sum(shard.duration_s for shard in manifest.shards) == pytest.approx(sum(s.duration_s for s in scenes))


def test_twins_are_written_with_their_own_sound(tmp_path):
    write(tmp_path, num_clips=2, twins=True)
    read, scenes = members(tmp_path), make_scenes("train", 2, 0, twins=True)
    for scene in scenes:
        assert json.loads(read[f"{scene.key}.json"]) == scene.facts()
        assert read[f"{scene.key}.mp4"] == encode_scene(scene, 64)
    heard = [decode_audio(read[f"{scene.key}.mp4"]).numpy() for scene in scenes]
    loudest = [np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples) for samples in heard]
    assert loudest == pytest.approx([TONE_HZ[scene.tone] for scene in scenes], abs=5)


def test_size_of_the_frames_is_the_one_asked_for(tmp_path):
    write(tmp_path, num_clips=1, image_size=48)
    with av.open(io.BytesIO(members(tmp_path)["train_000000.mp4"])) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (48, 48)


def test_what_is_there_is_not_written_again(tmp_path):
    first = write(tmp_path)
    before = stamps(tmp_path)
    assert write(tmp_path) == first
    assert stamps(tmp_path) == before


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"num_clips": 9}, {"image_size": 48}, {"samples_per_shard": 5}, {"split": "test"}, {"twins": True}],
    ids=lambda changed: next(iter(changed)),
)
def test_other_facts_are_written_anew_and_nothing_old_remains(tmp_path, changed):
    first = write(tmp_path)
    second = write(tmp_path, **changed)
    assert second.hash != first.hash
    assert {path.name for path in tmp_path.glob("*.tar")} == {shard.name for shard in second.shards}


def test_an_interrupted_folder_is_written_anew(tmp_path):
    first = write(tmp_path)
    facts = json.loads((tmp_path / FACTS_NAME).read_text())
    (tmp_path / FACTS_NAME).write_text(json.dumps({**facts, "manifest": None}))
    (tmp_path / "manifest.json").unlink()
    assert write(tmp_path) == first


def test_a_lost_shard_is_written_anew(tmp_path):
    first = write(tmp_path)
    (tmp_path / first.shards[1].name).unlink()
    assert write(tmp_path) == first
    assert (tmp_path / first.shards[1].name).stat().st_size == first.shards[1].bytes


def test_shards_of_something_else_are_never_overwritten(tmp_path):
    (tmp_path / "precious.tar").write_bytes(b"precious")
    for _ in range(2):
        with pytest.raises(InputError, match="not of the embedded dataset"):
            write(tmp_path)
    assert (tmp_path / "precious.tar").read_bytes() == b"precious"


@pytest.mark.dist
def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    assert write(tmp_path / "two", num_processes=2) == write(tmp_path / "one", num_processes=1)


def test_progress_shows_the_rate_on_standard_error(tmp_path, capfd):
    write(tmp_path, progress=True)
    shown = capfd.readouterr()
    assert "10/10" in shown.err
    assert "clips/s" in shown.err
    assert not shown.out


def test_nothing_is_shown_unless_asked_for(tmp_path, capfd):
    write(tmp_path, num_clips=2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("changed", [{"image_size": 49}, {"image_size": 16}, {"num_clips": 0}, {"num_processes": 0}])
def test_arguments_that_cannot_be_used_are_named(tmp_path, changed):
    with pytest.raises(InputError, match=next(iter(changed))):
        write(tmp_path, **changed)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        write(tmp_path / "file" / "folder")

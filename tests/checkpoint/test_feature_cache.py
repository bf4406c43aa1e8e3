"""A teacher's answers on disk: bit for bit what was said, of this teacher and of these pixels alone."""

import logging
import multiprocessing
import os
import time
from functools import partial

import pytest
import torch

from ivt2.checkpoint import feature_cache
from ivt2.checkpoint.feature_cache import Answers, CachedTeacher, fingerprint
from ivt2.checkpoint.teacher import load_teacher
from ivt2.errors import InputError
from ivt2.models.internvl import InternVLTeacher
from ivt2.modules.masked_targets import MaskedTargets
from tests.modules.masked_case import batch, encoder, gradients, stage1, step, teacher_of_clips, teacher_of_frames
from tests.modules.masked_case import teacher_of_tubelets as of_tubelets

KINDS = {"frames": teacher_of_frames, "clips": teacher_of_clips, "tubelets": lambda: of_tubelets(4)}
FRAMES = 4


def clips(rows=range(4)):
    return batch(rows, FRAMES)["video"]


def cached(folder, teacher=None, *, max_gib=1.0):
    """With the clips that the teacher was asked about, call by call."""
    wrapped = CachedTeacher(teacher or teacher_of_frames(), folder, max_gib=max_gib)
    wrapped.asked = []
    original = wrapped.teacher.unnormalized
    wrapped.teacher.unnormalized = lambda video: (wrapped.asked.append(video), original(video))[1]
    return wrapped


def same(said, expected, rows=slice(None)):
    """Bit for bit, for some clips of what is expected."""
    num_clips = expected.middle.shape[1]
    wanted = expected._replace(middle=expected.middle[:, rows])
    for number, (one, other) in enumerate(zip(said, wanted, strict=True)):
        assert (one is None) == (other is None)
        if one is not None:
            whole = other if not number else other.unflatten(0, (num_clips, -1))[rows].flatten(0, 1)
            assert one.dtype == whole.dtype
            assert torch.equal(one, whole)


def files(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize(("kind", "dtype"), [(kind, torch.float32) for kind in KINDS] + [("clips", torch.bfloat16)])
def test_what_is_read_is_what_was_said(tmp_path, kind, dtype):
    """In any order, one by one or together, for one clip twice, and by another process's wrapper."""
    plain, video = KINDS[kind]().to(dtype), clips()
    expected = plain.unnormalized(video)
    teacher = cached(tmp_path, KINDS[kind]().to(dtype))
    same(teacher.unnormalized(video), expected)
    later = cached(tmp_path, KINDS[kind]()).to(dtype)
    for rows in ([0, 1, 2, 3], [2, 0, 3, 1], [3], [1, 1, 0]):
        same(teacher.unnormalized(video[rows]), expected, rows)
        same(later.unnormalized(video[rows]), expected, rows)
    assert len(teacher.asked) == 1
    assert not later.asked
    assert torch.equal(later(video).middle, plain(video).middle)
    assert len(files(tmp_path)) == 4


@pytest.mark.parametrize(
    ("kind", "rows"), [("frames", [3, 0, 2, 1]), ("clips", [0, 1, 2, 3]), ("clips", [3, 0, 3, 2]), ("tubelets", [2, 1])]
)
def test_of_a_batch_only_what_is_new_is_asked_and_at_once(tmp_path, kind, rows):
    teacher, video = cached(tmp_path, KINDS[kind]()), clips()
    first = teacher.unnormalized(video[:2])
    said = teacher.unnormalized(video[rows])
    new = list(dict.fromkeys(row for row in rows if row > 1))
    assert len(teacher.asked) == 2
    assert sorted(map(hash_of, teacher.asked[1])) == sorted(map(hash_of, video[new]))
    expected = KINDS[kind]().unnormalized(video[rows])
    for one, other in zip(said, expected, strict=True):
        torch.testing.assert_close(one, other)
    for row in (0, 1):
        if row in rows:
            assert torch.equal(said.middle[:, rows.index(row)], first.middle[:, row])
    same(teacher.unnormalized(video[rows]), said)
    assert len(teacher.asked) == 2


def hash_of(clip):
    return clip.numpy().tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_no_clip_is_a_batch_too(tmp_path, kind):
    teacher = cached(tmp_path, KINDS[kind]())
    said, expected = teacher.unnormalized(clips([])), KINDS[kind]().unnormalized(clips([]))
    assert [None if each is None else each.shape for each in said] == [
        None if each is None else each.shape for each in expected
    ]
    assert not files(tmp_path)


def test_any_other_pixel_frame_size_or_format_is_another_clip(tmp_path):
    """Also where the teacher resizes: the key is of what is given."""
    teacher, video = cached(tmp_path), clips([0])
    teacher.unnormalized(video)
    brighter = video.clone()
    brighter[0, 3, 2, 11, 11] ^= 1
    others = [brighter, video.roll(1, 4), video.flip(1), video[..., :8, :8], video.float() / 255]
    for number, other in enumerate(others):
        same(teacher.unnormalized(other), teacher_of_frames().unnormalized(other))
        assert len(teacher.asked) == number + 2
    same(teacher.unnormalized(video[..., :8, :8]), teacher_of_frames().unnormalized(video[..., :8, :8]))
    assert len(teacher.asked) == len(others) + 1


def literal():
    return of_tubelets(4, attention="literal")


def one_weight_off():
    teacher = teacher_of_frames()
    with torch.no_grad():
        teacher.encoder.blocks[2].mlp.fc1.bias[3] += 1e-6
    return teacher


def more_heads():
    teacher = teacher_of_frames()
    teacher.encoder.blocks[1].attn.num_heads = 4
    return teacher


def other_taps():
    teacher = teacher_of_frames()
    teacher.taps = (0, 2)
    return teacher


def test_only_the_same_teacher_has_the_same_fingerprint():
    makers = [*KINDS.values(), literal, one_weight_off, more_heads, other_taps]
    prints = [fingerprint(make()) for make in makers] + [fingerprint(teacher_of_frames().bfloat16())]
    assert len(set(prints)) == len(prints)
    assert prints[:3] == [fingerprint(make()) for make in makers[:3]]


@pytest.mark.parametrize("make", [one_weight_off, more_heads, other_taps])
def test_another_teacher_reads_nothing(tmp_path, make):
    cached(tmp_path).unnormalized(clips())
    other = cached(tmp_path, make())
    same(other.unnormalized(clips()), make().unnormalized(clips()))
    assert len(other.asked) == 1
    assert len(files(tmp_path)) == 8


def test_a_teacher_that_changes_is_another_teacher(tmp_path):
    teacher, video = cached(tmp_path), clips()
    teacher.unnormalized(video)
    teacher.load_state_dict(cached(tmp_path, one_weight_off()).state_dict())
    same(teacher.unnormalized(video), one_weight_off().unnormalized(video))
    teacher.to(torch.bfloat16)
    assert teacher.unnormalized(video).middle.dtype == torch.bfloat16
    assert len(teacher.asked) == 3


def test_float8_comes_with_the_first_clips_and_is_asked_about_once(tmp_path):
    """Until then it is not the teacher that it will be: no answer is given in one format and kept under another."""
    video, runs = clips(), []
    for _ in range(2):
        teacher = cached(tmp_path, teacher_of_frames()).set_format("float8", min_cosine=0.9)
        first = teacher.unnormalized(video[:2])
        teacher.unnormalized(video)
        same(teacher.unnormalized(video[:2]), first)
        runs.append([len(each) for each in teacher.asked])
    assert runs == [[2, 2], [2]]
    assert len(files(tmp_path)) == 4
    bfloat16 = cached(tmp_path).set_format("bfloat16")
    same(bfloat16.unnormalized(video), teacher_of_frames().bfloat16().unnormalized(video))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-10])


def empty(path):
    path.write_bytes(b"")


def exchange(path):
    """Well-formed, but of another program."""
    from safetensors.torch import save_file

    save_file({"middle": torch.zeros(3)}, path)


@pytest.mark.parametrize("damage", [flip_a_bit, shorten, empty, exchange])
def test_a_damaged_answer_is_asked_for_again_and_replaced(tmp_path, damage, caplog):
    teacher, video = cached(tmp_path), clips([0])
    expected = teacher.unnormalized(video)
    damage(files(tmp_path)[0])
    same(teacher.unnormalized(video), expected)
    assert caplog.text.count("damaged; the teacher is asked again") == 1
    same(teacher.unnormalized(video), expected)
    assert len(teacher.asked) == 2
    assert len(caplog.messages) == 1


def test_a_full_cache_answers_and_takes_no_more(tmp_path, caplog):
    video = clips(range(8))
    cached(tmp_path / "probe").unnormalized(video[:1])
    size = files(tmp_path / "probe")[0].stat().st_size
    teacher = cached(tmp_path / "cache", max_gib=3.5 * size / 2**30)
    expected = teacher.unnormalized(video)
    assert len(files(tmp_path / "cache")) == 3
    for _ in range(2):
        said = teacher.unnormalized(video)
        torch.testing.assert_close(said.middle, expected.middle)
        assert torch.equal(said.middle[:, :3], expected.middle[:, :3])
    assert [len(each) for each in teacher.asked] == [8, 5, 5]
    assert len(files(tmp_path / "cache")) == 3
    assert caplog.text.count("no more answers of the teacher are kept") == 1
    assert "raise the teacher's cache_gib" in caplog.text


def test_a_disk_that_is_full_ends_nothing(tmp_path, monkeypatch, caplog):
    def full(path, tensors):
        path.write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "write_tensors", full)
    teacher = cached(tmp_path)
    for _ in range(2):
        same(teacher.unnormalized(clips()), teacher_of_frames().unnormalized(clips()))
    assert caplog.text.count("No space left on device") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def filled(folder, begin, said):
    """What one of several processes does: the same clips at the same time."""
    torch.set_num_threads(1)
    teacher, video = cached(folder), clips(range(8))
    for _ in range(3):
        answers = {row % 8: teacher.unnormalized(video[[row % 8]]).middle for row in range(begin, begin + 8)}
    said.put((begin, torch.cat([answers[row] for row in range(8)], dim=1).numpy(), len(teacher.asked)))


def test_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    processes = [context.Process(target=filled, args=(tmp_path, begin, said)) for begin in (0, 0)]
    for process in processes:
        process.start()
    answers = [said.get() for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    expected = torch.cat([teacher_of_frames().unnormalized(clips([row])).middle for row in range(8)], dim=1)
    assert all(torch.equal(torch.from_numpy(middle), expected) for _, middle, _ in answers)
    assert all(asked <= 8 for *_, asked in answers)
    assert len(files(tmp_path)) == 8
    assert not list(tmp_path.rglob("*.partial"))


def test_a_clip_that_another_process_writes_meanwhile_is_nobodys_harm(tmp_path, monkeypatch, caplog):
    answers = {"middle": torch.arange(5)}
    mine, other = (Answers(tmp_path, max_bytes=20_000) for _ in range(2))
    original = feature_cache.write_tensors

    def overtaken(path, tensors):
        original(path, tensors)
        monkeypatch.setattr(feature_cache, "write_tensors", original)
        other.write("a", answers)

    monkeypatch.setattr(feature_cache, "write_tensors", overtaken)
    mine.write("a", answers)
    assert torch.equal(mine.read("a")["middle"], answers["middle"])
    assert not caplog.messages
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_room_is_shared_with_what_others_write(tmp_path):
    answers = {"middle": torch.zeros(1000, dtype=torch.uint8)}
    mine, other = (Answers(tmp_path, max_bytes=20_000) for _ in range(2))
    for number in range(20):
        mine.write(f"{number:032x}", answers)
        other.write(f"{number + 20:032x}", answers)
    used = sum(path.stat().st_size for path in files(tmp_path))
    assert 15_000 < used <= 20_000 + 2 * 1_300


def test_only_old_leftovers_of_killed_processes_go(tmp_path):
    for name, age_s in (("old.partial", 7200), ("new.partial", 10), ("old.safetensors", 7200)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    Answers(tmp_path, max_bytes=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.partial", "old.safetensors"]


@pytest.mark.parametrize("repeated", [False, True])
def test_a_cache_without_use_says_so_once(tmp_path, monkeypatch, caplog, repeated):
    monkeypatch.setattr(feature_cache, "_PATIENCE", 10)
    teacher = cached(tmp_path)
    with caplog.at_level(logging.WARNING):
        for number in range(8):
            teacher.unnormalized(clips(range(4) if repeated else range(4 * number, 4 * number + 4)))
    assert caplog.text.count("none of 12 clips was there") == (not repeated)
    assert ("transforms and frames without chance" in caplog.text) == (not repeated)


def test_it_is_a_teacher_like_the_one_inside(tmp_path):
    for make in KINDS.values():
        inner = make()
        teacher = CachedTeacher(inner, tmp_path, max_gib=1.0)
        for name in ("num_prefix", "gives_attention", "taps", "normalize", "final_dim", "encoder"):
            assert getattr(teacher, name) == getattr(inner, name)
        assert not any(module.training for module in teacher.train().modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert len(list(teacher.named_parameters())) == len(list(inner.named_parameters()))
    with pytest.raises(InputError, match="frames"):
        teacher.unnormalized(clips()[:, :3])


def test_training_is_the_same_with_and_without(tmp_path):
    """Loss, logs and gradients of a step, first asked and then read; masks that follow the attention included."""
    data = batch()
    results = []
    for wrap in (lambda teacher: teacher, cache_of(tmp_path), cache_of(tmp_path)):
        module = stage1(
            clip_teacher=wrap(teacher_of_frames()),
            mae_teacher=wrap(of_tubelets()),
            masks_per_clip=2,
            masking="attention",
        )
        loss, logged = step(module, data)
        loss.backward()
        results.append((logged, gradients(module)))
    for logged, own in results[1:]:
        assert logged == results[0][0]
        assert own.keys() == results[0][1].keys()
        assert all(torch.equal(own[name], results[0][1][name]) for name in own)


def cache_of(folder):
    return lambda teacher: CachedTeacher(teacher, folder, max_gib=1.0)


def test_targets_take_it_for_a_teacher(tmp_path):
    """A NaN in a weight is still found, by the name it has."""
    teacher = cached(tmp_path)
    targets = MaskedTargets({"clip": teacher}, encoder=encoder(), masking="tube", mask_ratio=0.5, masks_per_clip=1)
    targets.check_weights()
    with torch.no_grad():
        teacher.encoder.blocks[0].mlp.fc1.bias[0] = torch.nan
    with pytest.raises(InputError, match=r"clip_teacher: encoder\.blocks\.0\.mlp\.fc1\.bias holds NaN"):
        targets.check_weights()


def test_a_teacher_from_files_may_have_one(tmp_path):
    make = partial(InternVLTeacher, taps=(1, 2))
    load = partial(load_teacher, make, partial(encoder, 1), dtype="float32")
    assert isinstance(load(), InternVLTeacher)
    teacher = load(cache=str(tmp_path / "new" / "answers"), cache_gib=0.5)
    assert isinstance(teacher, CachedTeacher)
    same(teacher.unnormalized(clips()), teacher.teacher.unnormalized(clips()))
    assert len(files(tmp_path / "new" / "answers")) == 4
    with torch.device("meta"):
        assert isinstance(load(cache=str(tmp_path / "none")), InternVLTeacher)
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match=r"cache_gib=-1"):
        load(cache=str(tmp_path), cache_gib=-1)


@pytest.mark.parametrize(
    ("name", "max_gib", "message"),
    [
        ("file", 1.0, r"teacher's cache=.*file: not a folder that can be written; name one, or cache=null"),
        ("file/below", 1.0, r"not a folder that can be written"),
        ("cache", 0.0, r"teacher's cache_gib=0\.0: give the room"),
        ("cache", float("nan"), r"teacher's cache_gib=nan: give the room"),
    ],
)
def test_what_cannot_be_a_cache_is_refused_in_one_line(tmp_path, name, max_gib, message):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message) as caught:
        CachedTeacher(teacher_of_frames(), tmp_path / name, max_gib=max_gib)
    assert "\n" not in str(caught.value)

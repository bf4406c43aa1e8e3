"""Teachers from files: every weight, none other, and what a user may have got wrong."""

import logging
from functools import partial

import pytest
import torch

from ivt2.checkpoint.convert import convert
from ivt2.checkpoint.folder import save_checkpoint
from ivt2.checkpoint.teacher import load_teacher
from ivt2.errors import InputError
from ivt2.models.teacher import InternVideo2Teacher
from ivt2.ops.position import resize_position_table
from tests.checkpoint.tiny_releases import build, pair, published, release, weights

TEACHER = partial(InternVideo2Teacher, taps=(0, 1))


@pytest.fixture
def folder(tmp_path):
    """A converted release of four frames in bfloat16, whole."""
    published(tmp_path / "a.pt")
    return convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "a")


def encoder(num_frames=4, **options):
    return partial(build, num_frames, 28, **options)


def test_a_teacher_holds_the_weights_of_its_folder_frozen(folder):
    teacher = load_teacher(TEACHER, encoder(), weights=str(folder))
    expected = weights(build(4, 28))
    assert set(teacher.encoder.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in teacher.encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.taps == (0, 1)
    twin = build(4, 28)
    twin.load_state_dict(expected)
    video = torch.randint(0, 256, (1, 4, 3, 28, 28), dtype=torch.uint8)
    assert torch.equal(teacher.float()(video).middle, TEACHER(twin)(video).middle)


def test_a_part_of_a_release_is_taken_by_its_prefix_and_stretched_to_the_frames(tmp_path):
    """As the 1B teacher is taken from stage 2, whose table has four frames; the rest of the release stays."""
    tiny = pair()
    published(tmp_path / "vision.pt", tiny)
    delta = {name: value for name, value in weights(tiny.build(8, 28), seed=1).items() if "clip_projector" in name}
    torch.save(
        dict(tiny.parts[1].key_map.write(delta | {"temperature": torch.ones(1, dtype=torch.bfloat16)})),
        tmp_path / "delta.pt",
    )
    files = {"vision": tmp_path / "vision.pt", "delta": tmp_path / "delta.pt"}
    folder = convert(tiny, files, tmp_path / "pair")
    teacher = load_teacher(TEACHER, encoder(16), weights=str(folder), prefix="vision_encoder.")
    whole = load_teacher(TEACHER, encoder(8), weights=str(folder), prefix="vision_encoder.")
    table = resize_position_table(
        whole.encoder.pos_embed.float(), source_frames=8, num_frames=16, grid_size=2, num_prefix=1
    )
    assert torch.equal(teacher.encoder.pos_embed, table.bfloat16())
    state, stored = teacher.encoder.state_dict(), whole.encoder.state_dict()
    assert all(torch.equal(state[name], stored[name]) for name in state if name != "pos_embed")
    with pytest.raises(InputError, match="temperature"):
        load_teacher(TEACHER, encoder(8), weights=str(folder))


def test_a_checkpoint_of_a_run_can_teach(tmp_path):
    expected = weights(build(4, 28), torch.float32)
    stored = {f"student.encoder.{name}": value for name, value in expected.items()} | {"head": torch.ones(2)}
    save_checkpoint(tmp_path / "last.ckpt", {"state_dict": stored}, config=None, metadata={})
    load = partial(load_teacher, TEACHER, weights=str(tmp_path / "last.ckpt"), dtype="float32")
    teacher = load(encoder(), prefix="student.encoder.")
    assert all(torch.equal(value, expected[name]) for name, value in teacher.encoder.state_dict().items())
    with pytest.raises(InputError, match="another architecture"):
        load(encoder(embed_dim=32), prefix="student.encoder.")


def test_a_run_teaches_by_its_newest_checkpoint(tmp_path):
    checkpoints = tmp_path / "some_tiny" / "checkpoints"
    load = partial(load_teacher, TEACHER, encoder(), weights=str(checkpoints.parent), dtype="float32")
    checkpoints.mkdir(parents=True)
    with pytest.raises(InputError, match=r"without a whole checkpoint; .*train\.py experiment=some_tiny"):
        load()
    for name, seed in (("b.ckpt", 0), ("a.ckpt", 1)):
        save_checkpoint(checkpoints / name, {"state_dict": weights(build(4, 28), torch.float32, seed=seed)},
                        config=None, metadata={})  # fmt: skip
    expected = weights(build(4, 28), torch.float32, seed=1)
    assert all(torch.equal(value, expected[name]) for name, value in load().encoder.state_dict().items())


def test_without_weights_the_log_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        teacher = load_teacher(TEACHER, encoder())
    assert "InternVideo2Teacher has random weights" in caplog.text
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_with_weights_the_log_is_silent(folder, caplog):
    with caplog.at_level(logging.WARNING):
        load_teacher(TEACHER, encoder(), weights=str(folder))
    assert not caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_has_the_format_that_is_asked_for_whatever_the_files(folder, dtype):
    teacher = load_teacher(TEACHER, encoder(), weights=str(folder), dtype=dtype)
    assert {each.dtype for each in teacher.parameters()} == {getattr(torch, dtype)}
    default = load_teacher(TEACHER, encoder())
    assert {each.dtype for each in default.parameters()} == {torch.bfloat16}


def test_float8_is_proven_on_the_first_clips(folder):
    load = partial(load_teacher, TEACHER, encoder(), weights=str(folder))
    video = torch.randint(0, 256, (1, 4, 3, 28, 28), dtype=torch.uint8)
    teacher = load(dtype="float8", min_cosine=0.5)
    exact = load(dtype="bfloat16")(video).middle
    assert not torch.equal(teacher(video).middle, exact)
    with pytest.raises(InputError, match=r"less than min_cosine=0.99999: set its dtype=bfloat16"):
        load(dtype="float8", min_cosine=0.99999)(video)


def test_a_plan_of_float8_that_is_compiled_stays_a_plan(tmp_path):
    with torch.device("meta"):
        teacher = load_teacher(TEACHER, encoder(), weights=str(tmp_path), dtype="float8", compile=True)
    assert all(each.is_meta and each.dtype == torch.bfloat16 for each in teacher.parameters())


def test_a_plan_without_memory_reads_no_file(tmp_path):
    with torch.device("meta"):
        teacher = load_teacher(TEACHER, encoder(), weights=str(tmp_path / "none"))
    assert all(parameter.is_meta for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ("none", {}, r"none: does not exist; train it.* experiment=none, or convert .*ivt2\.cli\.convert"),
        ("a.pt", {}, r"a\.pt: is a file; train it.*, or convert .*ivt2\.cli\.convert"),
        ("a", {"embed_dim": 32}, r"does not fit this network: .* here .*build the network"),
        ("a", {"prefix": "vision_encoder."}, r"does not fit this network: 45 missing .*; 0 unexpected"),
    ],
)
def test_what_cannot_teach_is_named_in_one_line(folder, weights, options, message):
    prefix = options.pop("prefix", "")
    with pytest.raises(InputError, match=message) as caught:
        load_teacher(TEACHER, encoder(**options), weights=str(folder.parent / weights), prefix=prefix)
    assert "\n" not in str(caught.value)

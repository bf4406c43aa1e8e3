import json
import os
import random
import shutil

import pytest
import torch

from ivt2.checkpoint import (
    discard,
    fingerprint,
    load_checkpoint,
    newest_valid,
    read_metadata,
    read_weights,
    save_checkpoint,
    verify,
)
from ivt2.checkpoint import folder as folder_module
from ivt2.errors import InputError


def state_of(value):
    weights = {
        "weight": torch.full((4, 3), float(value)),
        "bias": torch.tensor(float(value), dtype=torch.bfloat16),
    }
    moments = {0: {"step": torch.tensor(1.0), "exp_avg": torch.full((3,), value / 7)}}
    return {
        "state_dict": weights,
        "optimizer_states": [{"state": moments, "param_groups": ()}],
        "step": value,
    }


def save(folder, value):
    save_checkpoint(folder, state_of(value), config={"lr": 1e-3}, metadata={"step": value})


def test_round_trip(tmp_path):
    save(tmp_path / "a.ckpt", 3)
    state = load_checkpoint(tmp_path / "a.ckpt")
    assert state["step"] == 3
    assert state["optimizer_states"][0]["param_groups"] == ()
    assert torch.equal(state["optimizer_states"][0]["state"][0]["step"], torch.tensor(1.0))
    assert state["state_dict"]["bias"].dtype == torch.bfloat16
    assert state["state_dict"]["bias"].shape == ()
    assert torch.equal(read_weights(tmp_path / "a.ckpt")["weight"], torch.full((4, 3), 3.0))
    assert read_metadata(tmp_path / "a.ckpt")["step"] == 3
    assert json.loads((tmp_path / "a.ckpt" / "config.json").read_text()) == {"lr": 1e-3}
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_no_pickle_inside(tmp_path):
    save(tmp_path / "a.ckpt", 3)
    for path in (tmp_path / "a.ckpt").iterdir():
        content = path.read_bytes()
        assert path.suffix in {".json", ".safetensors"}
        assert not content.startswith((b"PK", b"\x80"))


def test_equal_tensors_give_equal_bytes(tmp_path):
    files = [tmp_path / "a.ckpt" / "model.safetensors", tmp_path / "b.ckpt" / "model.safetensors"]
    for path in files:
        save(path.parent, 1)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_replacing_keeps_only_the_new_one(tmp_path):
    save(tmp_path / "last.ckpt", 1)
    first = fingerprint(tmp_path / "last.ckpt")
    save(tmp_path / "last.ckpt", 2)
    assert load_checkpoint(tmp_path / "last.ckpt")["step"] == 2
    assert fingerprint(tmp_path / "last.ckpt") != first
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_state_that_cannot_be_stored_leaves_the_old_one(tmp_path):
    save(tmp_path / "last.ckpt", 1)
    with pytest.raises(TypeError, match=r"state\['f'\]"):
        save_checkpoint(tmp_path / "last.ckpt", {"f": print}, config=None, metadata={})
    assert load_checkpoint(tmp_path / "last.ckpt")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_is_said_beforehand(tmp_path, monkeypatch):
    save(tmp_path / "last.ckpt", 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(InputError, match="10 are free"):
        save(tmp_path / "last.ckpt", 2)
    assert load_checkpoint(tmp_path / "last.ckpt")["step"] == 1


def test_what_cannot_be_read_back_does_not_replace(tmp_path, monkeypatch):
    save(tmp_path / "last.ckpt", 1)
    monkeypatch.setattr(folder_module, "shapes_in", lambda _: {"weight": (1,)})
    with pytest.raises(OSError, match="read back"):
        save(tmp_path / "last.ckpt", 2)
    assert load_checkpoint(tmp_path / "last.ckpt")["step"] == 1


FILES = ["manifest.json", "metadata.json", "config.json", "state.json", "state.safetensors", "model.safetensors"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing", "swap"])
def test_every_damage_is_found_and_named(tmp_path, name, damage):
    save(tmp_path / "a.ckpt", 1)
    save(tmp_path / "b.ckpt", 2)
    path = tmp_path / "a.ckpt" / name
    content = path.read_bytes()
    if damage == "swap":
        if name == "config.json":
            pytest.skip("both runs have the same configuration")
        shutil.copy(tmp_path / "b.ckpt" / name, path)
        with pytest.raises(InputError, match=r"damaged"):
            load_checkpoint(tmp_path / "a.ckpt")
        return
    if damage == "missing":
        path.unlink()
    elif damage == "flip":
        position = len(content) // 2
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    else:
        path.write_bytes(content[:-7] if damage == "truncate" else b"")
    if name == "manifest.json":
        with pytest.raises(InputError):
            load_checkpoint(tmp_path / "a.ckpt")
    else:
        with pytest.raises(InputError, match=name):
            load_checkpoint(tmp_path / "a.ckpt")
    assert newest_valid(tmp_path) == tmp_path / "b.ckpt"


def test_any_flipped_bit_is_found(tmp_path):
    save(tmp_path / "a.ckpt", 1)
    draw = random.Random(0)
    for _ in range(300):
        path = tmp_path / "a.ckpt" / draw.choice([*FILES, "manifest.json", "manifest.json"])
        content = path.read_bytes()
        position, bit = draw.randrange(len(content)), draw.randrange(8)
        path.write_bytes(content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :])
        with pytest.raises(InputError):
            verify(tmp_path / "a.ckpt")
        path.write_bytes(content)
    verify(tmp_path / "a.ckpt")


def test_manifest_cannot_point_outside(tmp_path):
    save(tmp_path / "a.ckpt", 1)
    path = tmp_path / "a.ckpt" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../secret"] = manifest["files"]["config.json"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest.json: damaged"):
        verify(tmp_path / "a.ckpt")


def test_newest_is_the_one_saved_last_and_whole(tmp_path, caplog):
    assert newest_valid(tmp_path / "nothing") is None
    for step in (10, 30, 20):  # step 20 after 30: the run was resumed from an older checkpoint
        save(tmp_path / f"step={step}.ckpt", step)
    assert newest_valid(tmp_path) == tmp_path / "step=20.ckpt"
    (tmp_path / "step=20.ckpt" / "state.json").write_text("{}")
    assert newest_valid(tmp_path) == tmp_path / "step=30.ckpt"
    assert "state.json" in caplog.text


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "file.ckpt").write_text("x")
    (tmp_path / "empty.ckpt").mkdir()
    for name, message in {"file.ckpt": "is a file", "none.ckpt": "does not exist", "empty.ckpt": "incomplete"}.items():
        with pytest.raises(InputError, match=message):
            load_checkpoint(tmp_path / name)


def test_discard(tmp_path):
    save(tmp_path / "a.ckpt", 1)
    (tmp_path / "link.ckpt").symlink_to("a.ckpt")
    discard(tmp_path / "link.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt")["step"] == 1
    discard(tmp_path / "a.ckpt")
    discard(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_replaced_not_followed(tmp_path):
    save(tmp_path / "step=1.ckpt", 1)
    (tmp_path / "last.ckpt").symlink_to("step=1.ckpt")
    save(tmp_path / "last.ckpt", 2)
    assert load_checkpoint(tmp_path / "step=1.ckpt")["step"] == 1
    assert load_checkpoint(tmp_path / "last.ckpt")["step"] == 2


def _killed_at(call, folder):
    """Save in a child process that dies just before its n-th call that changes the directory or flushes it."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(function):
            def replacement(*arguments, **options):
                nonlocal count
                count += 1
                if count == call:
                    os._exit(9)
                return function(*arguments, **options)

            return replacement

        try:
            for name in ("fsync", "rename", "mkdir", "unlink", "rmdir", "open"):
                setattr(os, name, counted(getattr(os, name)))
            save(folder, 2)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_any_point_leaves_a_whole_checkpoint(tmp_path):
    codes, steps = [], []
    for call in range(1, 60):
        folder = tmp_path / f"run{call}"
        save(folder / "last.ckpt", 1)
        codes.append(_killed_at(call, folder / "last.ckpt"))
        newest = newest_valid(folder)
        assert newest is not None
        steps.append(load_checkpoint(newest)["step"])
        assert load_checkpoint(folder / "last.ckpt")["step"] == steps[-1]
        save(folder / "last.ckpt", 3)  # and the next save cleans up
        assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
        if codes[-1] == 0:
            break
    assert codes[-1] == 0
    assert set(codes[:-1]) == {9}
    assert len(codes) > 15
    assert set(steps) == {1, 2}
    assert steps == sorted(steps)

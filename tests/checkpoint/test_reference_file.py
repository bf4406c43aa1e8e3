import argparse
import collections
import hashlib
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ivt2.checkpoint.keymaps.keymap import TensorFacts
from ivt2.checkpoint.reference_file import ReferenceFile
from ivt2.errors import InputError

WEIGHTS = {
    "blocks.0.weight": torch.arange(12.0).reshape(3, 4).to(torch.bfloat16),
    "bias": torch.tensor([0.5, -1.0]),
    "temp": torch.tensor(0.07),
    "position_ids": torch.arange(4).unsqueeze(0),
}


def same(file):
    assert list(file.facts) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert file.facts[name] == TensorFacts(tuple(tensor.shape), tensor.dtype)
        assert torch.equal(file.tensor(name), tensor)


def refusal(path):
    with pytest.raises(InputError) as caught:
        ReferenceFile.open(path).digest(lambda _: None)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        collections.OrderedDict(WEIGHTS),
        {name: torch.nn.Parameter(value, requires_grad=value.is_floating_point()) for name, value in WEIGHTS.items()},
        {"module": WEIGHTS},
        {"model": WEIGHTS, "epoch": 3, "args": argparse.Namespace(lr=1e-3), "optimizer": {"state": {}}},
        {"state_dict": WEIGHTS, "pytorch-lightning_version": "2.6"},
        {"cfg": {"encoder_layers": 12, "deep_norm": True}, "model": WEIGHTS},
        {"module": WEIGHTS, "optimizer": None, "ds_config": {"fp16": {}}, "param_shapes": [torch.Size([3])]},
        {"model": {"module": WEIGHTS}},
    ],
    ids=["bare", "ordered", "parameters", "module", "model", "lightning", "beats", "deepspeed", "twice"],
)
def test_weights_are_found_in_what_is_saved_around_them(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    same(ReferenceFile.open(tmp_path / "a.pth"))


def test_files_of_old_torch_and_safetensors(tmp_path):
    torch.save({"module": WEIGHTS}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    same(ReferenceFile.open(tmp_path / "old.bin"))
    safetensors.torch.save_file(WEIGHTS, tmp_path / "new.bin")  # the content decides, not the name
    file = ReferenceFile.open(tmp_path / "new.bin")
    assert file.facts == {name: TensorFacts(tuple(value.shape), value.dtype) for name, value in WEIGHTS.items()}
    assert all(torch.equal(file.tensor(name), value) for name, value in WEIGHTS.items())


def test_weights_stay_on_the_disk(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    first, again = (ReferenceFile.open(tmp_path / "a.pth").tensor("bias") for _ in range(2))
    assert first.untyped_storage().nbytes() == 8
    assert Path("/proc/self/maps").read_text().count(str(tmp_path / "a.pth")) == 2
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["zip.pth", "old.pth", "new.safetensors"])
def test_digest_is_the_sha256_of_the_file(tmp_path, name, monkeypatch):
    path = tmp_path / name
    if name.startswith("new"):
        safetensors.torch.save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=name == "zip.pth")
    for size in (1 << 22, 100, 7):  # members begin and end inside a chunk, and span several
        monkeypatch.setattr("ivt2.checkpoint.reference_file._CHUNK", size)
        read = []
        assert ReferenceFile.open(path).digest(read.append) == hashlib.sha256(path.read_bytes()).hexdigest()
        assert sum(read) == path.stat().st_size


def test_any_flipped_byte_is_found_or_changes_nothing(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"module": WEIGHTS}, path)
    content = path.read_bytes()
    draw, found = random.Random(0), 0
    for position in range(0, len(content), 4):
        flipped = bytes([content[position] ^ (1 << draw.randrange(8))])
        path.write_bytes(content[:position] + flipped + content[position + 1 :])
        try:
            file = ReferenceFile.open(path)
            file.digest(lambda _: None)
        except InputError:
            found += 1
            continue
        same(file)  # padding, names and dates of zip members
    assert found > 0.1 * len(content)


def test_any_length_of_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    for zipped in (True, False):
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped)
        content = path.read_bytes()
        for length in range(0, len(content), 41):
            path.write_bytes(content[:length])
            refusal(path)
    safetensors.torch.save_file(WEIGHTS, path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusal(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": WEIGHTS, "module": WEIGHTS}, "holds both module and model, so where its weights are is not clear"),
        ({"temp": WEIGHTS["temp"], "model": WEIGHTS}, "entry 'model' is a dict, not a plain tensor under a name"),
        ({"epoch": 3, "lr": 0.1}, "holds no tensors, only epoch, lr"),
        ({}, "holds no tensors"),
        ({"model": {}}, "holds no tensors, only model"),
        ({"model": {"model": {"epoch": 3}}}, "holds no tensors, only epoch"),
        ([WEIGHTS["bias"]], "holds a list, not weights by name"),
        (WEIGHTS["bias"], "holds a Tensor, not weights by name"),
        ({0: WEIGHTS["bias"]}, "entry 0 is a torch.strided tensor"),
        ({"a": WEIGHTS["bias"], "epoch": 3}, "entry 'epoch' is a int"),
        ({"a": torch.eye(2).to_sparse()}, "entry 'a' is a torch.sparse_coo tensor"),
        ({"a": torch.empty(2, device="meta")}, "entry 'a' is a torch.strided tensor on meta"),
    ],
)
def test_what_are_no_weights(tmp_path, content, expected):
    torch.save(content, tmp_path / "a.pth")
    assert expected in refusal(tmp_path / "a.pth")


class Code:
    """Unpickled, it would write a file."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path, zipped):
    path, mark = tmp_path / "a.pth", tmp_path / "mark"
    codes = [
        Code(os.system, f"touch {mark}"),
        Code(exec, f"open({str(mark)!r}, 'w')"),
        Code(getattr, Code(__import__, "os"), "system"),
    ]
    for code in codes:
        for content in (code, {"model": WEIGHTS, "epoch": code}, {**WEIGHTS, "bias": code}, collections.deque([code])):
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            message = refusal(path)
            assert "contains code (" in message
            assert "which was not run" in message
    assert not mark.exists()
    path.write_bytes(pickle.dumps({"a": Code(os.system, f"touch {mark}")}))
    assert "a pickle that torch.save did not write; it can contain code and was not run" in refusal(path)
    assert not mark.exists()


def test_nobody_is_told_to_run_what_is_refused(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth", pickle_protocol=4)
    message = refusal(tmp_path / "a.pth")
    assert "cannot be read as weights (Unsupported operand 149); fetch it again" in message
    torch.save({"a": Code(os.getcwd)}, tmp_path / "a.pth")
    assert "weights_only" not in message + refusal(tmp_path / "a.pth")


def test_a_network_pickled_whole_is_code(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    assert "contains code (torch.nn.modules.linear.Linear)" in refusal(tmp_path / "a.pth")


def test_what_people_have_instead_of_the_file(tmp_path):
    path = tmp_path / "a.pth"
    assert "cannot be read (No such file or directory)" in refusal(path)
    assert "is a folder; name the file in it" in refusal(tmp_path)
    for content, expected in {
        b"": "is empty; fetch it again",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12": "a Git LFS pointer",
        b"<!doctype html>": "a web page",
        b"some text, which is long enough to be a header": "neither a torch.save file nor a safetensors file",
    }.items():
        path.write_bytes(content)
        assert expected in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "a zip file, but not one that torch.save wrote" in refusal(path)


def test_a_file_that_was_compressed_is_refused(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member), compress_type=zipfile.ZIP_DEFLATED)
    assert "was compressed after torch.save wrote it" in refusal(tmp_path / "b.pth")


def test_safetensors_with_a_broken_header(tmp_path):
    path = tmp_path / "a.safetensors"
    for content in (b"junk", b"\xff" * 64, (50).to_bytes(8, "little") + b"{" + b"x" * 60):
        path.write_bytes(content)
        assert "not a readable safetensors file" in refusal(path)
    safetensors.torch.save_file({}, path)
    assert "holds no tensors" in refusal(path)
    safetensors.torch.save_file({"a": torch.ones(2, dtype=torch.complex64)}, path)
    assert "unknown dtype 'C64'" in refusal(path)

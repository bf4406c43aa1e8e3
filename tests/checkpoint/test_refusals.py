"""Damaged, foreign and hostile files: all refused with the reason, nothing loaded, nothing left behind."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ivt2.checkpoint.convert import convert, export
from ivt2.checkpoint.manifest import MANIFEST
from ivt2.checkpoint.released import FORMAT, load_released
from ivt2.errors import InputError
from tests.checkpoint.tiny_releases import DELTA, build, pair, published, release, tree, weights

KEY = "blocks.1.attn.proj.weight"
BASE = {"clip_decoder.0.norm.weight": None}


def flip(path, position):
    """Flip one bit; a position below 1 is a share of the file."""
    content = bytearray(path.read_bytes())
    content[int(position * len(content)) if position < 1 else position] ^= 16
    path.write_bytes(content)


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


# Files as they come from elsewhere: each function changes ``a.pt``, a good file of the release.


def saved(**changes):
    """The good file with other tensors; None leaves a key out."""

    def change(path):
        published(path, **changes)

    return change


def saved_as(content):
    def change(path):
        held = torch.load(path, weights_only=True)
        torch.save(content(held), path)

    return change


def written(content):
    return lambda path: path.write_bytes(content)


def renamed(old, new):
    return saved_as(lambda held: {key.replace(old, new): value for key, value in held.items()})


def member_after(name):
    """Where the bytes of a member of the zip file begin."""

    def position(path):
        with zipfile.ZipFile(path) as archive:
            member = next(member for member in archive.infolist() if member.filename.endswith(name))
        header = path.read_bytes()[member.header_offset :][:30]
        return member.header_offset + 30 + sum(struct.unpack("<HH", header[26:])) + 2

    return position


def flipped_member(name):
    return lambda path: flip(path, member_after(name)(path))


class Code:
    """Unpickled, it would make a folder ``mark`` beside the file."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def with_code(kind):
    def change(path):
        mark, held = str(path.with_name("mark")), torch.load(path, weights_only=True)
        made = Code(os.mkdir, mark)
        contents = {
            "system": Code(os.system, f"mkdir {mark}"),
            "popen": {"model": held, "epoch": Code(subprocess.Popen, ["mkdir", mark])},
            "eval": {**held, "temp": Code(eval, f"__import__('os').mkdir({mark!r})")},
            "nested": {"model": held, "args": {"callbacks": [None, (1, made)]}},
            "key": {"model": held, made: 1},
            "global": {"model": held, "hook": os.mkdir},
            "class": {"model": held, "path": Path(mark)},
            "network": build(4, 28),
        }
        torch.save(contents[kind], path)

    return change


def with_code_before_torch_16(path):
    torch.save({"a": Code(os.mkdir, str(path.with_name("mark")))}, path, _use_new_zipfile_serialization=False)


def with_code_as_plain_pickle(path):
    path.write_bytes(pickle.dumps({"a": Code(os.mkdir, str(path.with_name("mark")))}))


def with_code_as_safetensors(path):
    path.with_suffix(".safetensors").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(path.with_suffix(".safetensors"))
    with_code("system")(path)


def torchscript(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/readme.txt", "hello")


def compressed(path):
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def as_folder(path):
    path.unlink()
    path.mkdir()


def broken_safetensors(path):
    safetensors.torch.save_file(torch.load(path, weights_only=True), path)
    flip(path, 4)


def cut_safetensors(path):
    safetensors.torch.save_file(torch.load(path, weights_only=True), path)
    cut(path, 0.9)


def wide(num_frames, image_size):
    return build(num_frames, image_size, embed_dim=32)


def one_mixed(held):
    return held | {KEY: held[KEY].float()}


def delta_file(path):
    torch.save(dict(DELTA.write(weights(pair().build(8, 28)))), path)


def cast(dtype):
    return saved_as(lambda held: {key: value.to(dtype) for key, value in held.items()})


REFERENCE = {
    "dropped key": (saved(**{KEY: None}), f"1 missing ({KEY}); 0 unexpected"),
    "dropped table": (saved(pos_embed=None), "1 missing (pos_embed)"),
    "renamed key": (renamed("blocks.1.attn.proj", "blocks.1.attn.out"), "2 missing (blocks.1.attn.proj.weight"),
    "all keys prefixed": (renamed("", "x."), "missing (cls_token"),
    "extra key": (
        saved(**{"blocks.2.norm1.weight": torch.ones(16).bfloat16()}),
        "1 unexpected (blocks.2.norm1.weight)",
    ),
    "extra key of no kind": (saved(junk=torch.ones(1).bfloat16()), "1 unexpected (junk)"),
    "transposed": (saved(**{"blocks.0.mlp.fc1.weight": torch.ones(16, 32).bfloat16()}), "[16, 32] here [32, 16]"),
    "flattened": (saved(**{KEY: torch.ones(256).bfloat16()}), f"1 of another shape ({KEY} [256] here [16, 16])"),
    "empty tensor": (saved(**{KEY: torch.ones(0, 16).bfloat16()}), f"1 of another shape ({KEY} [0, 16] here [16, 16])"),
    "table of other frames": (saved(num_frames=6), "does not hold 4 square frames"),
    "table of other width": (saved(pos_embed=torch.ones(1, 17, 8).bfloat16()), "pos_embed [1, 17, 8] here [1, 17, 16]"),
    "double": (cast(torch.float64), "weights must all be float32, all float16 or all bfloat16"),
    "integers": (cast(torch.int32), "weights must all be float32, all float16 or all bfloat16"),
    "complex": (cast(torch.complex64), "weights must all be float32, all float16 or all bfloat16"),
    "one of another dtype": (saved_as(one_mixed), f"1 float32 ({KEY})"),
    "sparse": (
        saved_as(lambda held: held | {KEY: held[KEY].to_sparse()}),
        f"entry '{KEY}' is a torch.sparse_coo tensor",
    ),
    "a table that needs more than all memory": (
        saved_as(lambda held: held | {"pos_embed": torch.ones(1, 1, 16).bfloat16().expand(1, 1 + 4 * 10**12, 16)}),
        "entry 'pos_embed' is a tensor [1, 4000000000001, 16] that repeats fewer values",
    ),
    "no tensor": (saved_as(lambda held: held | {KEY: "text"}), f"entry '{KEY}' is a str"),
    "two state dicts": (saved_as(lambda held: {"model": held, "module": held}), "holds both module and model"),
    "no state dict": (saved_as(lambda held: {"model_ema": held}), "holds no tensors, only model_ema"),
    "list": (saved_as(lambda held: list(held.values())), "holds a list, not weights by name"),
    "cut at a quarter": (lambda path: cut(path, 0.25), "truncated or damaged"),
    "cut at nine tenths": (lambda path: cut(path, 0.9), "truncated or damaged"),
    "cut by a few bytes": (lambda path: cut(path, 0.9999), "truncated or damaged"),
    "cut to a few bytes": (lambda path: cut(path, 0.0001), "fetch it again"),
    "flipped weight": (flipped_member("/data/0"), "damaged (checksum of a/data/0)"),
    "flipped last weight": (flipped_member("/data/9"), "damaged (checksum of a/data/9)"),
    "flipped pickle": (flipped_member("/data.pkl"), "damaged (checksum of a/data.pkl)"),
    "flipped directory": (lambda path: flip(path, path.read_bytes().rfind(b"/data/0")), "fetch it again"),
    "another part": (delta_file, "the file looks like weights on top of a base"),
    "another size": (
        saved(tiny=release(build=lambda frames, side: build(frames, side, embed_dim=32))),
        "the file has 2 blocks of width 32",
    ),
    "compressed": (compressed, "was compressed after torch.save wrote it"),
    "zip of something else": (other_zip, "a zip file, but not one that torch.save wrote"),
    "empty": (written(b""), "is empty"),
    "text": (written(b"This is the file of weights you have been looking for."), "neither a torch.save file nor"),
    "web page": (written(b"<html>Access to this repository is restricted</html>"), "a web page, not a file of weights"),
    "lfs pointer": (written(b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
    "folder": (as_folder, "is a folder; name the file in it"),
    "missing": (Path.unlink, "cannot be read (No such file or directory)"),
    "safetensors with a broken header": (broken_safetensors, "not a readable safetensors file"),
    "safetensors cut off": (cut_safetensors, "not a readable safetensors file"),
    "code: os.system": (with_code("system"), "contains code (posix.system), which was not run"),
    "code: a process": (with_code("popen"), "contains code (commands.Popen), which was not run"),
    "code: eval": (with_code("eval"), "contains code (eval), which was not run"),
    "code: nested": (with_code("nested"), "contains code (posix.mkdir), which was not run"),
    "code: as a key": (with_code("key"), "contains code (posix.mkdir), which was not run"),
    "code: a function's name": (with_code("global"), "contains code (posix.mkdir), which was not run"),
    "code: a class": (with_code("class"), "contains code (pathlib.PosixPath), which was not run"),
    "code: a network": (
        with_code("network"),
        "contains code (ivt2.models.internvideo2.InternVideo2)",
    ),
    "code: old format": (with_code_before_torch_16, "contains code (posix.mkdir), which was not run"),
    "code: no torch file": (with_code_as_plain_pickle, "it can contain code and was not run"),
    "code: TorchScript": (torchscript, "contains code (TorchScript), which was not run"),
}


@pytest.mark.parametrize("mutation", REFERENCE)
def test_a_bad_file_is_refused(tmp_path, mutation):
    change, expected = REFERENCE[mutation]
    published(tmp_path / "a.pt", **BASE)
    change(tmp_path / "a.pt")
    before = tree(tmp_path)
    with pytest.raises(InputError) as caught:
        convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "out")
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'a.pt'}: ")
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] in (["a.pt"], [])


# Folders that were converted: each function changes ``folder``, a good one of several shards; ``other`` is another.


def reseal(folder):
    """What somebody does who wants a change to go unnoticed."""
    (folder / MANIFEST).unlink()
    FORMAT.seal(folder)


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def flipped(pattern, position):
    def change(folder, _):
        (path,) = list(folder.glob(pattern))[:1]
        flip(path, position)

    return change


def edited(name, *, sealed, **changes):
    """Entries of a JSON file changed; with ``sealed`` the manifest agrees again."""

    def change(folder, _):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        if sealed:
            reseal(folder)

    return change


def manifest_with(change_files):
    def change(folder, _):
        manifest = json.loads((folder / MANIFEST).read_text())
        change_files(manifest["files"])
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return change


def with_tensors(change_tensors):
    """Another first shard in a folder whose manifest agrees."""

    def change(folder, _):
        path = shards(folder)[0]
        tensors = safetensors.torch.load_file(path)
        safetensors.torch.save_file(change_tensors(tensors), path)
        reseal(folder)

    return change


def first(tensors):
    return next(iter(tensors))


def swap_shards(folder, _):
    one, two = shards(folder)[:2]
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)


def shard_of_another(folder, other):
    shutil.copy(shards(other)[0], shards(folder)[0])


def all_but_config_of_another(folder, other):
    for path in other.iterdir():
        if path.name != "config.json":
            shutil.copy(path, folder)
    reseal(folder)


def linked(folder, other):
    path = shards(folder)[0]
    path.unlink()
    path.symlink_to(shards(other)[0])
    reseal(folder)


def linked_outside(folder, other):
    path = folder / "metadata.json"
    path.rename(other.parent / "secret.json")
    path.symlink_to(other.parent / "secret.json")


def without(pattern, *, sealed):
    def change(folder, _):
        next(folder.glob(pattern)).unlink()
        if sealed:
            reseal(folder)

    return change


def pickle_as_shard(folder, other):
    torch.save({"a": Code(os.mkdir, str(other.parent / "mark"))}, shards(folder)[0])
    reseal(folder)


def emptied(folder, _):
    shutil.rmtree(folder)
    folder.mkdir()


def as_training_checkpoint(folder, _):
    path = folder / MANIFEST
    path.write_text(path.read_text().replace("ivt2 release 1", "ivt2 checkpoint 1"))


def long_config(folder, _):
    path = folder / "config.json"
    path.write_text(path.read_text() + " " * (1 << 24))
    reseal(folder)


def header_of_no_tensors(folder, _):
    """A header that claims more than all memory."""
    header = b'{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}'
    shards(folder)[0].write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    reseal(folder)


CONVERTED = {
    "flipped first shard": (flipped("model-00001*", 0.9), "model-00001-of-00006.safetensors: damaged"),
    "flipped last shard": (flipped("model-00006*", 0.5), "model-00006-of-00006.safetensors: damaged"),
    "flipped header of a shard": (flipped("model-00002*", 20), "model-00002-of-00006.safetensors: damaged"),
    "flipped config": (flipped("config.json", 0.5), "config.json: damaged"),
    "flipped metadata": (flipped("metadata.json", 0.5), "metadata.json: damaged"),
    "flipped manifest": (flipped("manifest.json", 0.5), "damaged"),
    "cut shard": (lambda folder, _: cut(shards(folder)[2], 0.5), "model-00003-of-00006.safetensors: damaged"),
    "empty shard": (lambda folder, _: cut(shards(folder)[2], 0), "model-00003-of-00006.safetensors: damaged"),
    "cut manifest": (lambda folder, _: cut(folder / MANIFEST, 0.9), "manifest.json: damaged (not JSON)"),
    "missing shard": (without("model-00002*", sealed=False), "model-00002-of-00006.safetensors: missing"),
    "missing shard, sealed": (without("model-00002*", sealed=True), "names other files than those of a release"),
    "missing config": (without("config.json", sealed=False), "config.json: missing"),
    "missing config, sealed": (without("config.json", sealed=True), "damaged or of another format"),
    "missing manifest": (without(MANIFEST, sealed=False), "manifest.json: missing, so the release is incomplete"),
    "missing everything": (emptied, "manifest.json: missing, so the release is incomplete"),
    "training checkpoint": (as_training_checkpoint, "of another format than 'ivt2 release 1'"),
    "swapped shards": (swap_shards, "damaged"),
    "shard of another file": (shard_of_another, "model-00001-of-00006.safetensors: damaged"),
    "weights of another release": (all_but_config_of_another, "does not speak of tiny-encoder as config.json does"),
    "dropped tensor": (with_tensors(lambda held: {k: v for k, v in held.items() if k != first(held)}), "1 missing ("),
    "renamed tensor": (
        with_tensors(lambda held: {k.replace(first(held), "renamed"): v for k, v in held.items()}),
        "1 missing (",
    ),
    "extra tensor": (with_tensors(lambda held: held | {"extra": torch.ones(2)}), "1 unexpected (extra)"),
    "tensor of another shape": (
        with_tensors(lambda held: held | {"cls_token": torch.ones(2)}),
        "1 of another shape (cls_token [2] here [1, 1, 16])",
    ),
    "tensor of whole numbers": (
        with_tensors(lambda held: held | {"cls_token": torch.ones(1, 1, 16, dtype=torch.int64)}),
        "1 of another shape (cls_token torch.int64 here torch.float32)",
    ),
    "tensor in two shards": (with_tensors(lambda held: held | {KEY: torch.ones(16, 16)}), f"holds {KEY}, as another"),
    "pickle in place of a shard": (pickle_as_shard, "not a readable safetensors file"),
    "manifest that names a path outside": (
        manifest_with(lambda files: files.update({"../secret": files["config.json"]})),
        "manifest.json: damaged",
    ),
    "manifest with an absolute path": (
        manifest_with(lambda files: files.update({"/etc/passwd": files["config.json"]})),
        "manifest.json: damaged",
    ),
    "manifest with another file": (
        manifest_with(lambda files: files.update({"code.py": files["config.json"]})),
        "names other files than those of a release",
    ),
    "manifest with another hash": (
        manifest_with(lambda files: files["config.json"].update(sha256="0" * 64)),
        "config.json: damaged",
    ),
    "link to another file": (linked, "model-00001-of-00006.safetensors: is a link"),
    "link out of the folder": (linked_outside, "metadata.json: is a link"),
    "config with a target": (edited("config.json", sealed=True, _target_="os.system"), "unknown entry _target_"),
    "config with a hidden target": (edited("config.json", sealed=True, dim={"_target_": "os.system"}), "dim is {"),
    "config with another release": (edited("config.json", sealed=True, release="other"), "does not speak of other"),
    "config without the change sealed": (edited("config.json", sealed=False, release="other"), "config.json: damaged"),
    "config of other frames": (edited("config.json", sealed=True, num_frames=1), "has num_frames=1, tiny-encoder 4"),
    "config with a table that is none": (
        edited("config.json", sealed=True, position_tables=["cls_token", KEY]),
        f"{KEY} is no position table",
    ),
    "config of an older key map": (
        edited("config.json", sealed=True, key_maps={"model: tiny-encoder": 2}),
        "was converted with key maps model: tiny-encoder 2",
    ),
    "config that never ends": (long_config, "config.json: longer than 16777216 bytes"),
    "config of a thousand brackets": (
        edited("config.json", sealed=True, dim=json.loads("[" * 900 + "]" * 900)),
        "config.json: dim is [",
    ),
    "shard with an absurd shape": (header_of_no_tensors, "not a readable safetensors file"),
    "metadata of another release": (edited("metadata.json", sealed=True, release="other"), "metadata.json: does not"),
}


@pytest.mark.parametrize("mutation", CONVERTED)
def test_a_bad_folder_is_refused(tmp_path, mutation):
    change, expected = CONVERTED[mutation]
    for seed, tiny in enumerate((release(), release(name="tiny-other"))):
        published(tmp_path / f"{seed}.pt", tiny, seed=seed)
        convert(tiny, {"model": tmp_path / f"{seed}.pt"}, tmp_path / str(seed), shard_bytes=4000)
    change(tmp_path / "0", tmp_path / "1")
    before = tree(tmp_path)
    network = build(4, 28)
    values = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.device("meta"):
        skeleton = build(4, 28)
    for target in (network, skeleton):
        with pytest.raises(InputError) as caught:
            load_released(tmp_path / "0", target, release=release(), num_frames=4)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, values[name]) for name, value in network.state_dict().items())
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    with pytest.raises(InputError):
        export(tmp_path / "0", release(), "model", tmp_path / "back.pt")
    assert tree(tmp_path) == before
    assert not (tmp_path / "mark").exists()


def test_there_are_fifty_and_more():
    assert len(REFERENCE) >= 50
    assert len(CONVERTED) >= 40

import json
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from ivt2.checkpoint import convert as convert_module
from ivt2.checkpoint.convert import convert, export
from ivt2.checkpoint.reference_file import ReferenceFile
from ivt2.checkpoint.released import ReleasedFolder, load_released
from ivt2.errors import InputError
from ivt2.ops.position import resize_position_table
from tests.checkpoint.keymaps.tiny import FAMILIES, filled
from tests.checkpoint.tiny_releases import DELTA, ENCODER, build, pair, part, published, release, tree, weights


def stored(folder):
    return dict(ReleasedFolder.open(folder).read())


def same(one, other):
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert tensor.shape == other[name].shape
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wrapper", [None, "module"])
def test_values_and_dtype_are_those_of_the_file(tmp_path, dtype, wrapper):
    published(tmp_path / "a.pt", wrapper=wrapper, dtype=dtype)
    folder = convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "out" / "a")
    assert folder == tmp_path / "out" / "a"
    same(stored(folder), weights(build(4, 28), dtype))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a"]


def test_the_folder_says_what_it_is(tmp_path):
    published(tmp_path / "mine.pt")
    tiny = release(part("model", ENCODER, num_bytes=(tmp_path / "mine.pt").stat().st_size))
    folder = convert(tiny, {"model": tmp_path / "mine.pt"}, tmp_path / "a")
    assert sorted(tree(folder)) == ["config.json", "manifest.json", "metadata.json", "model-00001-of-00001.safetensors"]
    assert json.loads((folder / "config.json").read_text()) == {
        "release": "tiny-encoder",
        "num_frames": 4,
        "image_size": 28,
        "dim": 8,
        "modalities": ["video", "image"],
        "tokenizer": None,
        "key_maps": {"model: tiny-encoder": 3},
        "position_tables": ["pos_embed", "img_pos_embed"],
    }
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["pixels"] == {"": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "mine.pt").stat().st_mode}
    assert metadata["parents"] == [
        {
            "part": "model",
            "file": "model.pt",
            "source": "Example/tiny",
            "licence": "MIT",
            "bytes": (tmp_path / "mine.pt").stat().st_size,
            "published_bytes": (tmp_path / "mine.pt").stat().st_size,
            "sha256": tree(tmp_path)["mine.pt"],
            "dtype": ["bfloat16"],
            "num_frames": 4,
            "resized": [],
            "dropped": {"aligning decoders, which only training needs": 1},
        }
    ]


def test_shards_are_small_and_the_same_each_time(tmp_path):
    published(tmp_path / "a.pt")
    for name in ("one", "two"):
        convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / name, shard_bytes=4000)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    shards = sorted((tmp_path / "one").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    held = [safetensors.torch.load_file(shard) for shard in shards]
    sizes = [sum(value.nbytes for value in tensors.values()) for tensors in held]
    assert all(size <= 4000 or len(tensors) == 1 for size, tensors in zip(sizes, held, strict=True))
    assert sum(size > 3000 for size in sizes) > 2
    same(stored(tmp_path / "one"), weights(build(4, 28)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tables_of_another_number_of_frames_are_resized_in_float32(tmp_path, dtype):
    published(tmp_path / "a.pt", num_frames=4, dtype=dtype)
    folder = convert(release(num_frames=8), {"model": tmp_path / "a.pt"}, tmp_path / "a")
    original, found = weights(build(4, 28), dtype), stored(folder)
    expected = resize_position_table(original["pos_embed"].float(), source_frames=4, num_frames=8, grid_size=2)
    same(found, original | {"pos_embed": expected.to(dtype)})
    assert json.loads((folder / "metadata.json").read_text())["parents"][0]["resized"] == ["pos_embed"]
    folder = convert(release(image_size=42), {"model": tmp_path / "a.pt"}, tmp_path / "b")
    expected = {
        name: resize_position_table(original[name].float(), source_frames=frames, num_frames=frames, grid_size=3).to(
            dtype
        )
        for name, frames in {"pos_embed": 4, "img_pos_embed": 1}.items()
    }
    same(stored(folder), original | expected)


def test_tables_of_unknown_frames_are_refused(tmp_path):
    published(tmp_path / "a.pt", num_frames=3)
    with pytest.raises(InputError, match="does not hold 4 square frames"):
        convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def write_pair(folder):
    """Files of ``pair``; returns what the network must hold."""
    tiny = pair()
    published(folder / "vision.pt", release(), dtype=torch.bfloat16)
    top = weights(tiny.build(8, 28), torch.float32, seed=1)
    torch.save(dict(DELTA.write(top)), folder / "delta.pt")
    base = weights(build(4, 28))
    table = resize_position_table(base["pos_embed"].float(), source_frames=4, num_frames=8, grid_size=2)
    expected = {f"vision_encoder.{name}": value for name, value in base.items()}
    expected["vision_encoder.pos_embed"] = table.bfloat16()
    return expected | {name: top[name] for name in top if name == "temperature" or "clip_projector" in name}


def test_a_delta_replaces_what_its_base_gives(tmp_path):
    expected = write_pair(tmp_path)
    files = {name: tmp_path / f"{name}.pt" for name in ("vision", "delta")}
    folder = convert(pair(), files, tmp_path / "pair")
    same(stored(folder), expected)
    parents = json.loads((folder / "metadata.json").read_text())["parents"]
    assert [parent["sha256"] for parent in parents] == [tree(tmp_path)["vision.pt"], tree(tmp_path)["delta.pt"]]
    assert [parent["dtype"] for parent in parents] == [["bfloat16"], ["float32"]]
    for wrong, expected in {
        (
            "vision",
        ): "files.delta is missing: tiny-pair is made of files.vision (vision.pt of Example/tiny), files.delta",
        ("vision", "delta", "text"): "files.text is unknown",
        (): "files.vision is missing; files.delta is missing",
    }.items():
        with pytest.raises(InputError) as caught:
            convert(pair(), dict.fromkeys(wrong, tmp_path / "vision.pt"), tmp_path / "other")
        assert expected in str(caught.value)


def test_a_release_whose_parts_leave_something_is_a_defect(tmp_path):
    write_pair(tmp_path)
    tiny = pair()
    partial = release(tiny.parts[1], name="partial", build=tiny.build)
    with pytest.raises(ValueError, match=r"partial: its parts leave \d+ missing"):
        convert(partial, {"delta": tmp_path / "delta.pt"}, tmp_path / "out")


def test_a_file_of_another_size_needs_to_be_allowed(tmp_path):
    published(tmp_path / "a.pt")
    size = (tmp_path / "a.pt").stat().st_size
    tiny = release(part("model", ENCODER, num_bytes=size + 1))
    with pytest.raises(
        InputError, match=rf"has {size} bytes, the published model.pt {size + 1}: .*allow_other_file=true"
    ):
        convert(tiny, {"model": tmp_path / "a.pt"}, tmp_path / "a")
    convert(tiny, {"model": tmp_path / "a.pt"}, tmp_path / "a", allow_other_file=True)
    parent = json.loads((tmp_path / "a" / "metadata.json").read_text())["parents"][0]
    assert (parent["bytes"], parent["published_bytes"]) == (size, size + 1)


def test_a_place_that_is_taken(tmp_path):
    published(tmp_path / "a.pt", seed=0)
    published(tmp_path / "b.pt", seed=1)
    folder = convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "out")
    before = tree(folder)
    with pytest.raises(InputError, match="is there already; choose another folder or set overwrite=true"):
        convert(release(), {"model": tmp_path / "b.pt"}, folder)
    assert tree(folder) == before
    convert(release(), {"model": tmp_path / "b.pt"}, folder, overwrite=True)
    same(stored(folder), weights(build(4, 28), seed=1))
    shutil.move(tmp_path / "b.pt", folder / "b.pt")
    with pytest.raises(InputError, match=r"holds b.pt beside a release; choose another folder"):
        convert(release(), {"model": folder / "b.pt"}, folder, overwrite=True)
    (tmp_path / "home").mkdir()
    for place in ("home", "a.pt"):
        with pytest.raises(InputError, match="holds something else than a release"):
            convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / place, overwrite=True)
    with pytest.raises(InputError, match=r"cannot be written, because of .*a.pt"):
        convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "a.pt" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "home", "out"]


def test_a_full_disk_is_said_before_any_work(tmp_path, monkeypatch):
    published(tmp_path / "a.pt")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    worked = []
    with pytest.raises(InputError, match=r"tiny-encoder as a folder needs \d+ bytes and 10 are free"):
        convert(
            release(),
            {"model": tmp_path / "a.pt"},
            tmp_path / "out" / "a",
            on_progress=lambda *done: worked.append(done),
        )
    assert worked == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("breaks", ["write_tensors", "write_json", "put_in_place"])
def test_failure_leaves_what_was_there(tmp_path, monkeypatch, breaks):
    published(tmp_path / "a.pt")
    folder = convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "out")
    before = tree(tmp_path)

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(convert_module, breaks, fail)
    with pytest.raises(OSError, match="no space left"):
        convert(release(), {"model": tmp_path / "a.pt"}, folder, overwrite=True)
    assert tree(tmp_path) == before


def test_what_cannot_be_read_back_does_not_replace(tmp_path, monkeypatch):
    published(tmp_path / "a.pt")
    folder = convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "out")
    before = tree(tmp_path)
    write = convert_module.write_tensors
    lost = "cls_token"
    monkeypatch.setattr(
        convert_module, "write_tensors", lambda path, held: write(path, {k: v for k, v in held.items() if k != lost})
    )
    with pytest.raises(OSError, match="read back"):
        convert(release(), {"model": tmp_path / "a.pt"}, folder, overwrite=True)
    assert tree(tmp_path) == before


def test_progress_reaches_its_end_in_every_step(tmp_path):
    published(tmp_path / "a.pt")
    last, steps = {}, []

    def watch(what, done, total):
        assert last.get(what, (0, total))[0] <= done <= total * 1.5
        last[what] = done, total
        if what not in steps:
            steps.append(what)

    convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "a", shard_bytes=4000, on_progress=watch)
    assert steps == ["checking", "writing", "sealing", "verifying"]
    assert last["checking"] == (size := (tmp_path / "a.pt").stat().st_size, size)
    assert last["writing"][0] == last["writing"][1] == sum(value.nbytes for value in stored(tmp_path / "a").values())


def test_there_and_back_is_bit_identical(tmp_path):
    held = published(tmp_path / "a.pt", wrapper="model")
    folder = convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "a")
    export(folder, release(), "model", tmp_path / "back" / "a.pt")
    back = torch.load(tmp_path / "back" / "a.pt", weights_only=True)
    assert type(back) is dict
    assert list(back) == [name for name in held if not name.startswith("clip_decoder")]
    del held["clip_decoder.0.norm.weight"]
    same(back, held)
    convert(release(), {"model": tmp_path / "back" / "a.pt"}, tmp_path / "again")
    same(stored(tmp_path / "again"), stored(folder))
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["a.pt"]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bert"])  # which leaves out cross-attention
def test_networks_of_every_family_go_there_and_back(tmp_path, name):
    key_map, build = FAMILIES[name]
    tiny = release(part("model", key_map, num_frames=2), num_frames=2, build=lambda *_: build())
    state = filled(build)
    torch.save(dict(key_map.write(state)), tmp_path / "a.pt")
    folder = convert(tiny, {"model": tmp_path / "a.pt"}, tmp_path / "a")
    same(stored(folder), state)
    with torch.device("meta"):
        network = build()
    load_released(folder, network, release=tiny)
    same(network.state_dict(), state)
    export(folder, tiny, "model", tmp_path / "back.pt")
    same(torch.load(tmp_path / "back.pt", weights_only=True), torch.load(tmp_path / "a.pt", weights_only=True))
    convert(tiny, {"model": tmp_path / "back.pt"}, tmp_path / "again")
    shards = [next((tmp_path / name).glob("*.safetensors")) for name in ("a", "again")]
    assert shards[0].read_bytes() == shards[1].read_bytes()


def test_tensors_that_a_file_stores_once_become_two(tmp_path):
    held = published(tmp_path / "a.pt")
    held["blocks.1.norm1.weight"] = held["blocks.0.norm1.weight"]
    torch.save(held, tmp_path / "a.pt")
    folder = convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "a")
    with torch.device("meta"):
        network = build(4, 28)
    load_released(folder, network)
    one, other = network.blocks[0].norm1.weight, network.blocks[1].norm1.weight
    assert torch.equal(one, other)
    assert one.data_ptr() != other.data_ptr()


def test_what_a_file_repeats_must_be_equal(tmp_path):
    key_map, build = FAMILIES["visual"]
    tiny = release(part("model", key_map, num_frames=2), num_frames=2, build=lambda *_: build())
    held = dict(key_map.write(filled(build)))
    held["text_encoder.cls.predictions.decoder.weight"] = held["text_encoder.cls.predictions.decoder.weight"] + 1
    torch.save(held, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a.pt: text_encoder.cls.predictions.decoder.weight must repeat"):
        convert(tiny, {"model": tmp_path / "a.pt"}, tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_each_part_goes_back_alone(tmp_path):
    expected = write_pair(tmp_path)
    folder = convert(pair(), {name: tmp_path / f"{name}.pt" for name in ("vision", "delta")}, tmp_path / "pair")
    export(folder, pair(), "delta", tmp_path / "delta_back.pt")
    same(
        torch.load(tmp_path / "delta_back.pt", weights_only=True), torch.load(tmp_path / "delta.pt", weights_only=True)
    )
    export(folder, pair(), "vision", tmp_path / "vision_back.pt")
    back = ReferenceFile.open(tmp_path / "vision_back.pt")
    assert back.facts["pos_embed"].shape == (1, 33, 16)
    assert torch.equal(
        back.tensor("clip_projector.norm1_q.weight"), expected["vision_encoder.clip_projector.norm1_q.weight"]
    )


def test_export_refuses_another_part_place_or_release(tmp_path):
    published(tmp_path / "a.pt")
    folder = convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "a")
    for arguments, expected in (
        ((folder, release(), "text", tmp_path / "b.pt"), "part=text: tiny-encoder has model; choose one of them"),
        (
            (folder, release(), "model", tmp_path / "a.pt"),
            "is there already; choose another file or set overwrite=true",
        ),
        ((folder, release(), "model", tmp_path / "a.pt" / "b.pt"), "cannot be written, because of"),
        ((folder, release(name="other"), "model", tmp_path / "b.pt"), "holds tiny-encoder, not other"),
    ):
        with pytest.raises(InputError) as caught:
            export(*arguments)
        assert expected in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.pt"]
    before = (tmp_path / "a.pt").stat().st_size
    export(folder, release(), "model", tmp_path / "a.pt", overwrite=True)
    assert (tmp_path / "a.pt").stat().st_size < before


MEASURE = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from ivt2.checkpoint.convert import convert
from ivt2.checkpoint.keymaps.keymap import KeyMap
from ivt2.checkpoint.release import Part, Release

def peak():  # not ru_maxrss, which begins with that of the process that started this one
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

path, output, width, depth, shard_bytes = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
part = Part("model", KeyMap("wide", 1), "wide.pt", "Example/wide", "MIT")
build = lambda num_frames, image_size: nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))
release = Release(
    name="wide", title="Wide", build=build, parts=(part,), modalities=("video",), num_frames=1, image_size=14, dim=8
)
before = peak()
convert(release, {"model": path}, output, shard_bytes=shard_bytes)
print(json.dumps([before, peak()]))
"""


@pytest.mark.slow
def test_memory_stays_under_thirteen_tenths_of_the_file(tmp_path):
    width, depth = 2560, 24
    state = {f"{index}.weight": torch.ones(width, width, dtype=torch.bfloat16) for index in range(depth)}
    torch.save(state, tmp_path / "wide.pt")
    arguments = [str(tmp_path / "wide.pt"), str(tmp_path / "out"), str(width), str(depth), str(32 << 20)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 12
    assert after - before < 1.3 * (tmp_path / "wide.pt").stat().st_size

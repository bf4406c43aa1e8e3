import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ivt2.checkpoint.convert import convert
from ivt2.checkpoint.manifest import MANIFEST
from ivt2.checkpoint.released import FORMAT, ReleasedFolder, load_released, read_facts, resize_table
from ivt2.errors import InputError
from ivt2.ops.position import resize_position_table
from tests.checkpoint.tiny_releases import ENCODER, build, part, published, release, tree, weights


@pytest.fixture
def folder(tmp_path):
    """A converted release of several shards in bfloat16."""
    published(tmp_path / "a.pt")
    return convert(release(), {"model": tmp_path / "a.pt"}, tmp_path / "a", shard_bytes=4000)


def skeleton(num_frames=4, image_size=28):
    with torch.device("meta"):
        return build(num_frames, image_size)


def reseal(folder, **changes):
    """Change entries of config.json, and make the manifest agree again."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / MANIFEST).unlink()
    FORMAT.seal(folder)


def test_a_network_on_meta_gets_everything_as_it_is_stored(folder):
    network = skeleton()
    network.cls_token.requires_grad_(False)
    facts = load_released(folder, network, release=release())
    assert facts.release == "tiny-encoder"
    assert list(network.state_dict()) == list(weights(build(4, 28)))
    for name, expected in weights(build(4, 28)).items():
        value = network.get_parameter(name)
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, expected)
        assert value.requires_grad == (name != "cls_token")
        assert str(folder) not in str(value.untyped_storage().filename)


def test_nothing_of_the_network_depends_on_the_files_afterwards(folder):
    network = skeleton()
    load_released(folder, network)
    for shard in folder.glob("*.safetensors"):
        with shard.open("r+b") as file:
            file.write(bytes(shard.stat().st_size))
    assert all(torch.equal(network.get_parameter(name), value) for name, value in weights(build(4, 28)).items())


def test_dtype_is_that_of_the_network_where_it_has_memory(folder):
    network = build(4, 28)
    parameters = dict(network.named_parameters())
    load_released(folder, network, dtype=torch.float16)
    for name, expected in weights(build(4, 28)).items():
        assert network.get_parameter(name) is parameters[name]
        assert torch.equal(parameters[name], expected.float())
    network = skeleton()
    load_released(folder, network, dtype=torch.float32)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert torch.equal(network.pos_embed, weights(build(4, 28))["pos_embed"].float())


@pytest.mark.parametrize("on_meta", [True, False])
def test_tables_are_resized_over_time_then_in_space_in_float32(folder, on_meta):
    network = skeleton(8, 42) if on_meta else build(8, 42)
    load_released(folder, network, num_frames=8, dtype=torch.float32)
    stored = {name: value.float() for name, value in weights(build(4, 28)).items()}
    joint = resize_position_table(stored["pos_embed"], source_frames=4, num_frames=8, grid_size=3)
    image = resize_position_table(stored["img_pos_embed"], source_frames=1, num_frames=1, grid_size=3)
    assert torch.equal(network.pos_embed, joint)
    assert torch.equal(network.img_pos_embed, image)
    assert torch.equal(network.cls_token, stored["cls_token"])
    network = skeleton(8, 42)
    load_released(folder, network, num_frames=8)
    assert torch.equal(network.pos_embed, joint.bfloat16())


def test_frames_that_the_network_does_not_have_are_refused(folder):
    for frames, num_frames in ((8, None), (8, 4), (4, 16), (8, 2)):
        network = skeleton(frames)
        with pytest.raises(InputError) as caught:
            load_released(folder, network, num_frames=num_frames)
        assert f"the network is built for {frames} temporal positions (" in str(caught.value)
        assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "rows", "source_frames", "num_frames", "target_rows"),
    [
        ("pos_embed", 9, 2, 4, 17),
        ("decoders.pos_embed", 8, 2, 4, 16),
        ("pos_embed", 9, 2, 2, 19),
        ("encoder.pos_embed_temporal", 2, 2, 4, 4),
        ("pos_embed_spatial", 4, 2, 4, 9),
        ("img_pos_embed", 5, 2, 4, 10),
        ("pos_embed_cls", 1, 2, 4, 1),
        ("pos_embed", 17, 4, 1, 17),  # as many rows, but of one frame of 4 x 4
    ],
)
def test_every_kind_of_table(name, rows, source_frames, num_frames, target_rows):
    table = torch.randn(1, rows, 4)
    shape = (1, target_rows, 4)
    resized = resize_table(name, table, shape, source_frames=source_frames, num_frames=num_frames)
    assert tuple(resized.shape) == shape
    if name == "pos_embed_cls":
        assert torch.equal(resized, table)
    elif "temporal" in name:
        assert torch.allclose(resized[0, 0], table[0, 0])
        assert torch.allclose(resized[0, 1], 0.75 * table[0, 0] + 0.25 * table[0, 1])
    elif rows == target_rows:
        assert torch.equal(resized[:, :1], table[:, :1])
        assert not torch.equal(resized, table)


def test_a_table_of_other_frames_than_said_is_refused():
    for name, rows in (("pos_embed_temporal", 5), ("pos_embed", 15), ("img_pos_embed", 8)):
        with pytest.raises(InputError, match=rf"{name}: the network's {rows} rows are not those of \d square frames"):
            resize_table(name, torch.zeros(1, 9, 4), (1, rows, 4), source_frames=2, num_frames=4)


def test_another_network_is_described_and_left_alone(folder):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = build(4, 28).blocks[:1]
            self.pos_embed = nn.Parameter(torch.zeros(1, 17, 8))
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 16, dtype=torch.float32))
            self.head = nn.Linear(2, 2)

    network = Other()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_released(folder, network)
    message = str(caught.value)
    assert message.startswith(f"{folder}: tiny-encoder does not fit this network: ")
    assert "2 missing (head.weight, head.bias)" in message
    assert " unexpected (" in message
    assert "1 of another shape (pos_embed [1, 17, 16] here [1, 17, 8])" in message
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_counters_and_weights_are_not_mixed_up(folder):
    network = skeleton()
    del network.cls_token
    network.register_buffer("cls_token", torch.zeros(1, 1, 16, dtype=torch.int64))
    with pytest.raises(InputError, match=r"1 of another shape \(cls_token torch.bfloat16 here torch.int64\)"):
        load_released(folder, network)


def test_buffers_are_filled_and_those_that_cannot_be_are_a_defect(folder):
    network = skeleton()
    del network.cls_token
    network.register_buffer("cls_token", torch.zeros(1, 1, 16, device="meta"))
    load_released(folder, network)
    assert torch.equal(network.get_buffer("cls_token"), weights(build(4, 28))["cls_token"])
    network = skeleton()
    network.register_buffer("table", torch.zeros(2, device="meta"), persistent=False)
    with pytest.raises(RuntimeError, match="1 still on the meta device \\(table\\)"):
        load_released(folder, network)


def test_shared_weights_stay_shared(folder):
    network = skeleton()
    network.blocks[1].norm1.weight = network.blocks[0].norm1.weight
    load_released(folder, network)
    assert network.blocks[1].norm1.weight is network.blocks[0].norm1.weight
    assert network.blocks[1].norm2.weight is not network.blocks[0].norm2.weight


def test_the_folder_must_be_the_release_that_is_expected(folder):
    other = release(name="tiny-other")
    newer = release(part("model", replace(ENCODER, version=4)))
    for expected, tiny in {
        "holds tiny-encoder, not tiny-other": other,
        "was converted with key maps model: tiny-encoder 3, this version of ivt2 has model: tiny-encoder 4": newer,
    }.items():
        with pytest.raises(InputError) as caught:
            load_released(folder, skeleton(), release=tiny)
        assert expected in str(caught.value)


def test_facts_are_read_without_the_weights(folder):
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    facts, metadata = read_facts(folder)
    assert (facts.num_frames, facts.image_size, facts.dim) == (4, 28, 8)
    assert metadata["parents"][0]["licence"] == "MIT"
    with pytest.raises(InputError, match=r"model-00001-of-\d+.safetensors: missing from the release"):
        ReleasedFolder.open(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"_target_": "os.system"}, "unknown entry _target_; this file holds facts alone and nothing is built from it"),
        ({"num_frames": 0}, "num_frames is 0, not a fact of a release"),
        ({"num_frames": True}, "num_frames is True"),
        ({"modalities": "video"}, "modalities is 'video'"),
        ({"tokenizer": {}}, "tokenizer is {}"),
        ({"key_maps": {"a": "1"}}, "key_maps is {'a': '1'}"),
        ({"position_tables": ["pos_embed", "gone"]}, "gone is no position table of this release"),
        ({"position_tables": ["patch_embed.proj.bias"]}, "patch_embed.proj.bias is no position table"),
        ({"release": "other"}, "metadata.json: does not speak of other as config.json does"),
    ],
)
def test_config_holds_facts_alone(folder, changes, expected):
    reseal(folder, **changes)
    with pytest.raises(InputError) as caught:
        ReleasedFolder.open(folder)
    assert expected in str(caught.value)


def test_a_folder_that_was_set_aside_is_read(folder):
    before = tree(folder)
    moved = folder.rename(folder.with_name("a.previous"))
    assert tree(moved) == before
    assert load_released(folder, skeleton()).release == "tiny-encoder"

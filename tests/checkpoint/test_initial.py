"""Exact: a part has what the file has, bit for bit, or the network is as it was and one line says why."""

import logging

import pytest
import torch
from torch import nn

from ivt2.checkpoint.convert import convert
from ivt2.checkpoint.folder import save_checkpoint
from ivt2.checkpoint.initial import load_initial
from ivt2.errors import InputError
from ivt2.ops.position import resize_position_table
from tests.checkpoint.tiny_releases import build, pair, published, release, weights


class Network(nn.Module):
    """An encoder beside something that no file has."""

    def __init__(self, num_frames=4):
        super().__init__()
        self.vision_encoder = build(num_frames, 28)
        self.vision_proj = nn.Linear(8, 3)
        self.temperature = nn.Parameter(torch.full((1,), 0.07))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted release of an encoder of four frames in bfloat16."""
    root = tmp_path_factory.mktemp("release")
    published(root / "a.pt")
    return convert(release(), {"model": root / "a.pt"}, root / "a")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A converted release of an encoder below ``vision_encoder`` and a temperature, of eight frames."""
    root, tiny = tmp_path_factory.mktemp("pair"), pair()
    published(root / "vision.pt", tiny)
    delta = {name: value for name, value in weights(tiny.build(8, 28), seed=1).items() if "clip_projector" in name}
    torch.save(
        dict(tiny.parts[1].key_map.write(delta | {"temperature": torch.ones(1, dtype=torch.bfloat16)})),
        root / "delta.pt",
    )
    return convert(tiny, {"vision": root / "vision.pt", "delta": root / "delta.pt"}, root / "pair")


def run(folder, prefix, state, encoder=None):
    """A checkpoint of a run; ``encoder`` is what its configuration says of the one at the prefix."""
    config = {"module": {}}
    node = config["module"]
    for key in [key for key in prefix.split(".") if key]:
        node = node.setdefault(key, {})
    node.update(encoder or {})
    stored = {f"{prefix}{name}": value for name, value in state.items()} | {"head": torch.ones(2)}
    save_checkpoint(folder, {"state_dict": stored}, config=config if encoder else None, metadata={})
    return folder


def copied(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def table(stored, source_frames, num_frames):
    return resize_position_table(
        stored.float(), source_frames=source_frames, num_frames=num_frames, grid_size=2, num_prefix=1
    )


def test_a_part_gets_the_release_in_its_own_format_and_the_rest_stays(folder, caplog):
    network = Network()
    before = copied(network)
    with caplog.at_level(logging.INFO):
        load_initial(network, {"vision_encoder": {"weights": str(folder)}})
    expected = weights(build(4, 28))
    for name, value in network.state_dict().items():
        part, _, leaf = name.partition(".")
        wanted = expected[leaf].float() if part == "vision_encoder" else before[name]
        assert value.dtype == torch.float32, name
        assert torch.equal(value, wanted), name
    assert f"vision_encoder from {folder}" in caplog.text
    assert "at random are vision_proj, temperature" in caplog.text


def test_a_prefix_picks_the_part_and_tables_get_the_frames_of_the_network(whole):
    network, same = Network(16), Network(8)
    for each in (network, same):
        load_initial(each, {"vision_encoder": {"weights": str(whole), "prefix": "vision_encoder."}})
    state, stored = network.vision_encoder.state_dict(), same.vision_encoder.state_dict()
    assert torch.equal(state["pos_embed"], table(stored["pos_embed"], 8, 16))
    assert all(torch.equal(state[name], stored[name]) for name in state if name != "pos_embed")


def test_the_whole_network_with_what_the_file_lacks_named(whole, caplog):
    network = Network(8)
    before = copied(network)
    with caplog.at_level(logging.INFO):
        load_initial(network, {"model": {"weights": str(whole), "missing": ["vision_proj.*"]}})
    assert network.temperature.item() == 1.0
    assert torch.equal(network.vision_proj.weight, before["vision_proj.weight"])
    assert not torch.equal(network.vision_encoder.cls_token, before["vision_encoder.cls_token"])
    assert "start kept: vision_proj.weight, vision_proj.bias" in caplog.text
    assert "at random" not in caplog.text


def test_a_later_part_replaces_a_part_of_an_earlier_one(whole, folder):
    network = Network(4)
    parts = {
        "model": {"weights": str(whole), "missing": ["vision_proj.*"]},
        "vision_encoder.clip_projector": {"weights": str(folder), "prefix": "clip_projector."},
    }
    load_initial(network, parts)
    pooling = weights(build(4, 28))
    state = network.vision_encoder.state_dict()
    assert all(torch.equal(state[name], pooling[name].float()) for name in state if name.startswith("clip_projector."))


def test_a_run_starts_another_by_its_newest_checkpoint_and_its_configuration_tells_the_frames(tmp_path):
    """Two positions in time of a run with tubelets of two become four; rows alone would not tell."""
    expected = weights(build(2, 28), torch.float32)
    described = {"num_frames": 4, "tubelet_size": 2}
    run(tmp_path / "first" / "checkpoints" / "last.ckpt", "student.encoder.", expected, described)
    network = Network(4)
    load_initial(network, {"vision_encoder": {"weights": str(tmp_path / "first"), "prefix": "student.encoder."}})
    state = network.vision_encoder.state_dict()
    assert torch.equal(state["pos_embed"], table(expected["pos_embed"], 2, 4))
    assert all(torch.equal(state[name], expected[name]) for name in state if name != "pos_embed")


def test_equal_rows_of_other_frames_are_resized_all_the_same(tmp_path):
    """Four frames of 2 x 2 patches are as many rows as one of 4 x 4."""
    expected = weights(build(4, 28), torch.float32)
    run(tmp_path / "last.ckpt", "encoder.", expected, {"num_frames": 1})
    network = Network(4)
    load_initial(network, {"vision_encoder": {"weights": str(tmp_path / "last.ckpt"), "prefix": "encoder."}})
    found = network.vision_encoder.pos_embed.detach()
    assert found.shape == expected["pos_embed"].shape
    assert torch.allclose(found[:, 1:5], found[:, 5:9]), "one frame, shrunk and repeated"
    assert not torch.equal(found, expected["pos_embed"])


def test_tables_of_a_run_without_configuration_must_fit_as_they_are(tmp_path):
    for num_frames in (2, 4):
        state = weights(build(num_frames, 28), torch.float32)
        run(tmp_path / f"{num_frames}.ckpt", "", state)
    parts = {"vision_encoder": {"weights": str(tmp_path / "4.ckpt"), "unused": ["head"]}}
    network = Network(4)
    load_initial(network, parts)
    assert torch.equal(network.vision_encoder.pos_embed, weights(build(4, 28), torch.float32)["pos_embed"])
    with pytest.raises(InputError, match=r"1 of another shape \(pos_embed \[1, 9, 16\]"):
        load_initial(network, {"vision_encoder": {"weights": str(tmp_path / "2.ckpt"), "unused": ["head"]}})


def test_what_a_file_lacks_keeps_its_start_if_it_is_named(tmp_path):
    """As a first stage without a table for images starts a second one that has it."""
    state = weights(build(4, 28), torch.float32)
    del state["img_pos_embed"]
    run(tmp_path / "last.ckpt", "", state)
    parts = {"vision_encoder": {"weights": str(tmp_path / "last.ckpt"), "unused": ["he?d"]}}
    network = Network()
    before = copied(network)
    with pytest.raises(InputError, match=r"1 missing \(img_pos_embed\); 0 unexpected"):
        load_initial(network, parts)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "nothing was loaded"
    parts["vision_encoder"]["missing"] = ["img_*"]
    load_initial(network, parts)
    assert torch.equal(network.vision_encoder.img_pos_embed, before["vision_encoder.img_pos_embed"])
    assert torch.equal(network.vision_encoder.cls_token, state["cls_token"])


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("vision_encode", {}, r"no part named 'vision_encode'; did you mean vision_encoder"),
        ("sound", {}, r"no part named 'sound'; its parts are vision_encoder, vision_proj \(model is all of it\)"),
        ("vision_encoder", {"weights": "none"}, r"initial\.vision_encoder\.weights=.*none: does not exist; train it"),
        ("vision_encoder", {"prefix": "student."}, r"prefix='student\.': no tensor of .* begins so"),
        ("vision_encoder", {"part": "all"}, r"'part' is no option; it takes weights, prefix, missing, unused"),
        ("vision_proj", {}, r"does not fit: 2 missing \(weight, bias\); .* unexpected \(.*and 42 more\)"),
        ("vision_encoder", {"missing": ["cls_token"]}, r"'cls_token' is nothing that the part has and the file lacks"),
        ("vision_encoder", {"unused": ["head.*"]}, r"'head\.\*' is nothing that the file has and the part lacks"),
    ],
)
def test_what_cannot_start_a_part_is_named_in_one_line(folder, part, options, message):
    options = {"weights": str(folder)} | {
        key: str(folder.parent / value) if key == "weights" else value for key, value in options.items()
    }
    with pytest.raises(InputError, match=message) as caught:
        load_initial(Network(), {part: options})
    assert "\n" not in str(caught.value)


def test_a_part_needs_weights():
    with pytest.raises(InputError, match=r"initial\.vision_encoder: weights is not given"):
        load_initial(Network(), {"vision_encoder": {"prefix": "encoder."}})


def test_weights_that_are_null_leave_a_part_as_it_is(caplog):
    network = Network()
    before = copied(network)
    with caplog.at_level(logging.INFO):
        load_initial(network, {"vision_encoder": {"weights": None, "prefix": "encoder."}})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert "at random are vision_encoder, vision_proj, temperature" in caplog.text
    with pytest.raises(InputError, match="did you mean vision_encoder"):
        load_initial(network, {"vision_encodr": {"weights": None}})


@pytest.mark.parametrize("place", ["run/checkpoints/last.ckpt", "last.ckpt"])
def test_a_checkpoint_in_shards_is_refused_with_what_to_do(tmp_path, place):
    """As the engines that shard parameters write them, index and all."""
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / ".metadata").touch()
    with pytest.raises(InputError, match=r"in the shards of its ranks.*folder `weights`"):
        load_initial(Network(), {"vision_encoder": {"weights": str(tmp_path / place.split("/")[0])}})


def test_a_sharded_run_gives_what_it_left_whole(tmp_path):
    (tmp_path / "checkpoints" / "last.ckpt").mkdir(parents=True)
    (tmp_path / "checkpoints" / "last.ckpt" / ".metadata").touch()
    trained = weights(build(4, 28), seed=5)
    run(tmp_path / "weights", "encoder.", trained)
    network = Network()
    load_initial(network, {"vision_encoder": {"weights": str(tmp_path), "prefix": "encoder."}})
    assert all(torch.equal(value, trained[name]) for name, value in network.vision_encoder.state_dict().items())


def test_nothing_is_loaded_where_a_later_part_does_not_fit(folder):
    network = Network()
    before = copied(network)
    with pytest.raises(InputError, match=r"initial\.vision_proj"):
        load_initial(network, {"vision_encoder": {"weights": str(folder)}, "vision_proj": {"weights": str(folder)}})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_another_width_or_kind_of_number_does_not_fit(tmp_path):
    state = weights(build(4, 28), torch.float32)
    wide = weights(build(4, 28, embed_dim=32), torch.float32)
    state["cls_token"] = state["cls_token"].long()
    state["pos_embed"] = wide["pos_embed"]
    run(tmp_path / "last.ckpt", "model.", state, {"num_frames": 4})
    with pytest.raises(InputError, match=r"2 of another shape \(cls_token .*int64.*, pos_embed \[1, 17, 32\]"):
        load_initial(Network(), {"vision_encoder": {"weights": str(tmp_path / "last.ckpt"), "prefix": "model."}})

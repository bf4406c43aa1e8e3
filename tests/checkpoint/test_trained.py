import copy
import json

import pytest
import torch

from ivt2.checkpoint import manifest, save_checkpoint
from ivt2.checkpoint.manifest import sha256
from ivt2.checkpoint.trained import load_trained
from ivt2.errors import InputError
from ivt2.models.bert import Bert
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.stage2 import Stage2Model
from ivt2.models.videomae import VideoMAE
from ivt2.nn.aligning import AligningDecoders

VISION = {
    "image_size": 8, "patch_size": 4, "num_frames": 2, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0,
    "pool_num_heads": 2, "pooled_dim": 8,
}  # fmt: skip
TEXT = {
    "vocab_size": 20, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "max_positions": 8, "fusion_layer": 1,
    "encoder_width": 16,
}  # fmt: skip
CONFIG = {
    "module": {
        "_target_": "ivt2.modules.stage2.Stage2Module",
        "model": {
            "_target_": "ivt2.models.stage2.Stage2Model",
            "vision_encoder": {"_target_": "ivt2.models.internvideo2.InternVideo2", **VISION},
            "text_encoder": {"_target_": "ivt2.models.bert.Bert", **TEXT},
            "contrastive_dim": 4,
        },
    }
}


@pytest.fixture
def network():
    return Stage2Model(InternVideo2(**VISION), Bert(**TEXT), contrastive_dim=4)


DECODERS = {
    "embed_dim": 16, "pooled_dim": 8, "num_layers": 1, "teacher_dim": 6, "final_dim": 4, "num_frames": 2,
    "grid_size": 2,
}  # fmt: skip


def with_decoders(**changes):
    """A configuration of a network that is aligned with a teacher."""
    config = copy.deepcopy(CONFIG)
    decoders = {"_target_": "ivt2.nn.aligning.AligningDecoders", **DECODERS, **changes}
    config["module"]["model"]["clip_decoders"] = decoders
    return config


MAE = {
    "image_size": 8, "patch_size": 4, "num_frames": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0,
}  # fmt: skip


def learner(**sizes):
    """Description of a student; what stands beside its encoder is not looked at."""
    encoder = {"_target_": "ivt2.models.internvideo2.InternVideo2", **VISION, **sizes}
    return {"_target_": "ivt2.models.stage1.build_student", "encoder": encoder, "clip": {"_target_": "os.system"}}


RUNS = {
    "student.encoder.": {"student": learner()},
    "students.only.encoder.": {"students": {"only": learner()}},
    "students.wide.encoder.": {"students": {"narrow": learner(), "wide": learner(embed_dim=32)}},
    "model.encoder.": {
        "model": {
            "_target_": "ivt2.models.masked_autoencoder.MaskedAutoencoder",
            "encoder": {"_target_": "ivt2.models.videomae.VideoMAE", **MAE},
            "decoder_dim": 8,
        }
    },
}
"""What configurations of runs say, by where the encoder's weights lie."""


def save(folder, network, config):
    state = {"state_dict": {f"model.{name}": value for name, value in network.state_dict().items()}}
    save_checkpoint(folder, state, config=config, metadata={})
    return folder


def test_the_network_of_a_run_comes_back(tmp_path, network):
    loaded = load_trained(save(tmp_path / "last.ckpt", network, CONFIG))
    assert type(loaded) is Stage2Model
    assert loaded.vision_encoder.num_frames == 2
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_the_decoders_towards_a_teacher_come_back(tmp_path, network):
    network.clip_decoders = AligningDecoders(**DECODERS)
    loaded = load_trained(save(tmp_path / "last.ckpt", network, with_decoders()))
    assert torch.equal(loaded.clip_decoders.decoders[0].head.weight, network.clip_decoders.decoders[0].head.weight)
    folder = save(tmp_path / "deep.ckpt", network, with_decoders(num_layers=10**9))
    with pytest.raises(InputError, match=r"num_layers=1000000000: the file holds [0-9]+ tensors"):
        load_trained(folder)


def save_run(folder, prefix, encoder, config=None):
    """A run with decoders, which no configuration describes."""
    state = {f"{prefix}{name}": value for name, value in encoder.state_dict().items()}
    state |= {"student.clip_decoders.norm.weight": torch.ones(3), "students.wide.clip_decoders.bias": torch.ones(3)}
    config = config or {"module": RUNS[prefix]}
    save_checkpoint(folder, {"state_dict": state | {"model.mask_token": torch.ones(8)}}, config=config, metadata={})
    return folder


@pytest.mark.parametrize("prefix", RUNS)
def test_the_encoder_of_a_run_comes_back(tmp_path, prefix):
    wide = {"embed_dim": 32} if "wide" in prefix else {}
    encoder = VideoMAE(**MAE) if prefix == "model.encoder." else InternVideo2(**VISION | wide)
    folder = save_run(tmp_path / "last.ckpt", prefix, encoder)
    loaded = load_trained(folder, student="wide" if wide else None)
    assert type(loaded) is type(encoder)
    torch.testing.assert_close(loaded.state_dict(), encoder.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded.pos_embed, encoder.pos_embed, rtol=0, atol=0)
    names = "narrow or wide" if wide else "only" if "only" in prefix else None
    message = f"choose student={names}" if names else "student=big is none of this run's; leave student out"
    with pytest.raises(InputError, match=message):
        load_trained(folder, student="big")
    if wide:
        with pytest.raises(InputError, match="student=None is none of this run's; choose student=narrow or wide"):
            load_trained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 10**9}, "num_frames=1000000000, image_size=8 and embed_dim=12 are not those of the weights"),
        ({"image_size": 10**6}, "image_size=1000000 .* are not those of the weights"),
        ({"embed_dim": 10**6}, "embed_dim=1000000 are not those of the weights"),
        ({"depth": 10**9}, r"module\.model\.encoder\.depth=1000000000: the file holds"),
        ({"embed_dim": "12"}, "embed_dim is '12', which that network does not take"),
        ({"patch_size": 0}, "describes no possible VideoMAE"),
        ({"_target_": "ivt2.models.internvideo2.InternVideo2"}, "describes InternVideo2, not VideoMAE"),
        ({"_target_": "os.system"}, "'os.system', not a network"),
    ],
)
def test_what_the_configuration_of_an_autoencoder_may_not_say(tmp_path, change, message):
    """Its table of positions is computed in memory: sizes that are not the file's are refused before."""
    config = copy.deepcopy(RUNS["model.encoder."])
    config["model"]["encoder"].update(change)
    folder = save_run(tmp_path / "last.ckpt", "model.encoder.", VideoMAE(**MAE), {"module": config})
    with pytest.raises(InputError, match=message):
        load_trained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.update(_target_="os.system"), "'os.system', not a network"),
        (lambda model: model["vision_encoder"].update(_target_="ivt2.data.shards.ShardWriter"), "not a network"),
        (lambda model: model["vision_encoder"].update(mean=[{"_target_": "os.system"}]), "mean is .*, which that"),
        (lambda model: model["vision_encoder"].update(mean={"_target_": "os.system"}), "mean is .*, which that"),
        (lambda model: model.update(vision_encoder=model["text_encoder"]), "describes Bert, not InternVideo2"),
        (lambda model: model.update(vision_encoder=[model["vision_encoder"]]), "vision_encoder is None, not a network"),
        (lambda model: model["vision_encoder"].pop("embed_dim"), "vision_encoder has no value for 'embed_dim'"),
        (lambda model: model.update(contrastive_dim="4"), "contrastive_dim is '4', which that network does not take"),
        (lambda model: model.update(contrastive_dim=True), "contrastive_dim is 'True', which that network does not"),
        (lambda model: model["vision_encoder"].update(position="joined"), "position is 'joined', which that network"),
        (lambda model: model["vision_encoder"].update(pooled_dim=2**40), "of another shape"),
        (lambda model: model["vision_encoder"].update(embed_dim=10**30), "describes no possible InternVideo2"),
        (lambda model: model["vision_encoder"].update(embed_dim=-16), "describes no possible InternVideo2"),
        (lambda model: model["vision_encoder"].update(patch_size=0), "describes no possible InternVideo2"),
        (lambda model: model["vision_encoder"].update(mlp_ratio=float("nan")), "describes no possible InternVideo2"),
        (lambda model: model["vision_encoder"].update(num_frames=10**9), "of another shape"),
        (lambda model: model["vision_encoder"].update(depth=10**9), "depth=1000000000: the file holds [0-9]+ tensors"),
        (lambda model: model["text_encoder"].update(vocab_size=10**12), "of another shape"),
        (lambda model: model.update(colour="red"), "has no argument 'colour'"),
        (lambda model: model.update(contrastive_dim=5), "of another shape"),
    ],
)
def test_what_a_configuration_may_not_say(tmp_path, network, change, message):
    config = copy.deepcopy(CONFIG)
    change(config["module"]["model"])
    with pytest.raises(InputError, match=message):
        load_trained(save(tmp_path / "last.ckpt", network, config))


@pytest.mark.parametrize("config", [[], {"module": []}, {"module": {"model": "os.system"}}, {}])
def test_configurations_of_something_else(tmp_path, network, config):
    with pytest.raises(InputError, match=r"module\.model is None, not a network"):
        load_trained(save(tmp_path / "last.ckpt", network, config))


def test_a_checkpoint_without_configuration(tmp_path, network):
    folder = save(tmp_path / "last.ckpt", network, None)
    with pytest.raises(InputError, match=r"config\.json: missing"):
        load_trained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))  # put there later, under no seal
    with pytest.raises(InputError, match=r"config\.json: missing"):
        load_trained(folder)


def test_a_file_is_read_once_and_only_where_it_is_needed(tmp_path, network, monkeypatch):
    folder = save(tmp_path / "last.ckpt", network, CONFIG)
    read = []
    monkeypatch.setattr(manifest, "sha256", lambda path, **_: read.append(path.name) or sha256(path))
    before = torch.get_rng_state()
    load_trained(folder)
    assert read == ["config.json", "model.safetensors"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_damaged_configuration(tmp_path, network):
    folder = save(tmp_path / "last.ckpt", network, CONFIG)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"contrastive_dim": 4', '"contrastive_dim": 5'))
    with pytest.raises(InputError, match=r"config\.json: damaged"):
        load_trained(folder)

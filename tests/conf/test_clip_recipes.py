"""Exact: the published recipes of CLIP post-training, as numbers that a run would have."""

import pytest
import torch

from ivt2.checkpoint.zoo import RELEASES
from tests.conf.recipes import config, module

RECIPES = {  # weights, those that learn, clips a step, epochs, width of the space, release that it starts from
    "clip_1b": (7_713_126_145, 7_042_177, 4096, 3, 768, "internvideo2-1b-stage2"),
    "clip_6b": (12_634_152_705, 33_207_169, 2048, 1, 768, "internvideo2-6b-stage2"),
    "clip_s14": (86_867_201, 1_136_769, 4096, 3, 512, "internvideo2-s14-distilled"),
    "clip_b14": (153_262_337, 2_762_241, 4096, 3, 512, "internvideo2-b14-distilled"),
    "clip_l14": (372_752_641, 4_337_409, 4096, 3, 512, "internvideo2-l14-distilled"),
}
each = pytest.mark.parametrize("name", RECIPES)


@each
def test_networks_are_the_published_ones_and_learn_as_little(name):
    weights, learning, _, _, width, _ = RECIPES[name]
    model = module(name).model
    sizes = {parameter: each.numel() for parameter, each in model.named_parameters()}
    assert sum(sizes.values()) == weights
    learns = [parameter for parameter, each in model.named_parameters() if each.requires_grad]
    assert sum(sizes[parameter] for parameter in learns) == learning
    assert all(part in {"temperature", "vision_encoder", "vision_align"} for part in {p.split(".")[0] for p in learns})
    assert model.text_encoder.projection_dim == width
    assert model.vision_encoder.num_frames == 8
    assert (model.temperature.shape, model.min_temperature) == ((1,), 0.01)


@each
def test_steps_and_rates(name):
    _, _, clips, epochs, _, _ = RECIPES[name]
    cfg = config(name)
    assert set(cfg.datamodule.global_batch_size.values()) == {clips}
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, list(cfg.optimizer.betas)) == (4e-4, 0.2, [0.9, 0.98])
    assert (cfg.trainer.max_epochs, cfg.trainer.gradient_clip_val, cfg.trainer.precision) == (
        epochs,
        None,
        "bf16-mixed",
    )
    assert (cfg.schedule.warmup_ratio, cfg.schedule.min_ratio) == (0.2, 0.01)
    assert cfg.module.model.temperature == cfg.module.model.min_temperature == 0.01
    assert not any(cfg.module.mask_ratio.values())


@each
def test_start_weights_hold_what_the_towers_have(name):
    """By name and shape, but for the positions of 4 frames that become 8."""
    start = RECIPES[name][-1]
    initial, model = config(name).module.initial, module(name).model
    assert initial.vision_encoder.weights.endswith(f"/{start}")
    for part, release in (("vision_encoder", start), ("text_encoder", initial.text_encoder.weights.rpartition("/")[2])):
        with torch.device("meta"):
            held = RELEASES[release].build(RELEASES[release].num_frames, 224).state_dict()
        prefix = initial[part].get("prefix", "")
        found = {key.removeprefix(prefix): value.shape for key, value in held.items() if key.startswith(prefix)}
        for unused in initial[part].get("unused", ()):
            found.pop(unused)
        wanted = {key: value.shape for key, value in getattr(model, part).state_dict().items()}
        different = {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
        assert different == ({"pos_embed"} if (part, start[-6:]) == ("vision_encoder", "stage2") else set())


@each
def test_tokenizer_is_that_of_the_text_tower(name):
    tokenizer, large = config(name).datamodule.tokenizer, name in {"clip_1b", "clip_6b"}
    assert tokenizer._target_.endswith("LlamaTokenizer" if large else "ClipTokenizer")
    assert set(tokenizer) == {"_target_", "vocab_file", "max_length"}
    assert tokenizer.max_length == (80 if large else 77)
    if not large:
        assert module(name).model.text_encoder.context_length == 77

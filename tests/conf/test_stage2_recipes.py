"""Exact: the published recipes of stage 2 as numbers, and that their start weights and captions fit their networks."""

from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ivt2.checkpoint import initial
from ivt2.checkpoint.keymaps.keymap import tensor_facts
from ivt2.checkpoint.zoo import NUM_PARAMETERS, RELEASES
from ivt2.datamodules.sources import MediaSource
from ivt2.modules.stage2_terms import TERMS, check_sources, parse_terms
from tests.conf.recipes import config, module

RECIPES = {  # clips a step, rate, decay, second beta, epochs (of them warm-up), clipping, hidden, frames, tokens
    "stage2_1b": (4096, 5e-5, 0.05, 0.98, 10, 1, 3.0, 0.8, 4, 32),
    "stage2_6b": (16384, 5e-5, 0.05, 0.98, 5, 1, 3.0, 0.8, 4, 40),
    "stage2_6b_unmasked": (16384, 5e-5, 0.05, 0.98, 5, 1, 3.0, 0.0, 4, 40),
    "stage2_6b_msrvtt": (32, 5e-6, 0.05, 0.98, 5, 1, 3.0, 0.8, 4, 40),
    "stage2_6b_didemo": (32, 5e-6, 0.05, 0.98, 5, 1, 3.0, 0.8, 4, 64),
    "stage2_6b_activitynet": (256, 4e-5, 0.02, 0.999, 20, 1, None, 0.0, 12, 150),
    "stage2_6b_lsmdc": (256, 2e-5, 0.02, 0.999, 8, 1, None, 0.0, 12, 96),
    "stage2_6b_msvd": (256, 1e-5, 0.02, 0.999, 3, 0, None, 0.0, 12, 64),
    "stage2_6b_vatex": (256, 1e-5, 0.02, 0.999, 3, 0, None, 0.0, 12, 64),
}
PRETRAINING = list(RECIPES)[:3]


@cache
def published(name):
    """Names, shapes and kinds of all weights of a release."""
    release = RELEASES[name]
    with torch.device("meta"):
        return tensor_facts(release.build(release.num_frames, release.image_size).state_dict())


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_of_a_run(name):
    clips, rate, decay, beta, epochs, warmup, clipping, hidden, num_frames, tokens = RECIPES[name]
    cfg = config(name)
    sizes = cfg.datamodule.global_batch_size
    assert {clips} == ({sizes} if isinstance(sizes, int) else set(sizes.values()))
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, list(cfg.optimizer.betas)) == (rate, decay, [0.9, beta])
    assert cfg.trainer.max_epochs == epochs
    assert cfg.schedule.warmup_ratio * epochs == pytest.approx(warmup)
    assert cfg.schedule.min_ratio == 0.01
    assert cfg.trainer.gradient_clip_val == clipping
    assert cfg.trainer.precision == "bf16-mixed"
    assert cfg.module.mask_ratio.video == hidden
    assert cfg.module.mask_ratio.image == (0.5 if hidden else 0.0)
    assert cfg.datamodule.num_frames == num_frames
    assert cfg.datamodule.tokenizer.max_length == tokens
    assert cfg.datamodule.tokenizer.vocab_file is not None, "released weights need the words they were trained with"
    monitored = cfg.callbacks.best.monitor.split("/")
    assert monitored[1] in cfg.datamodule.val
    assert monitored[2:] == ["reranked", "t2v_r1"]


@pytest.mark.parametrize("name", RECIPES)
def test_which_terms_read_what_and_what_learns(name):
    cfg = config(name)
    terms = {each.name: (each.weight, each.caption) for each in parse_terms(cfg.module.terms)}
    assert {weight for weight, _ in terms.values()} == {1.0}
    if name == "stage2_1b":
        assert terms == dict.fromkeys(("vtc", "vtm", "mlm"), (1.0, None))
        assert list(cfg.module.frozen) == []
    elif name == "stage2_6b":
        assert {term: caption for term, (_, caption) in terms.items()} == dict.fromkeys(
            ("vtc", "vtm", "mlm", "avtc", "avtm", "avmlm"), "fused"
        )
        assert list(cfg.module.frozen) == ["audio_encoder"]
    elif name == "stage2_6b_unmasked":
        kinds = {"video": "fused", "audio": "audio", "audio_video": "audio_video"}
        assert {term: caption for term, (_, caption) in terms.items()} == {
            term: kinds[known.view] for term, known in TERMS.items() if term not in {"avc", "uta"}
        }
        assert list(cfg.module.frozen) == ["vision_encoder"]
    else:
        assert set(terms) == {"vtc", "vtm"}
        assert list(cfg.module.frozen) == []


@pytest.mark.parametrize("name", PRETRAINING)
def test_sources_serve_the_terms_with_their_captions(name):
    cfg = config(name)
    given = OmegaConf.to_container(cfg.datamodule.train, resolve=True)
    sources = {each: MediaSource.of(each, options) for each, options in given.items()}
    check_sources(
        parse_terms(cfg.module.terms),
        {each: source.medium for each, source in sources.items()},
        {each: tuple(source.caption_kinds) for each, source in sources.items()},
    )
    assert set(cfg.datamodule.global_batch_size) == {source.medium for source in sources.values()}


@pytest.mark.parametrize("name", ["stage2_1b", "stage2_6b", "stage2_6b_msrvtt", "stage2_6b_activitynet"])
def test_start_weights_fit_the_network(name):
    """Each part of a published file is there, in the shapes of the network, or is named as missing or unused."""
    network = module(name).model
    for part, options in config(name).module.initial.items():
        wanted = initial.InitialWeights(**options)
        release = RELEASES.get(Path(wanted.weights or "none").name)
        if release is None:  # null, or a run
            continue
        held = {
            each.removeprefix(wanted.prefix): facts
            for each, facts in published(release.name).items()
            if each.startswith(wanted.prefix)
        }
        tables = {each: release.num_frames for each in held if each.endswith("pos_embed")}
        here = network if part == initial.WHOLE else network.get_submodule(part)
        stored = initial._Stored(held, lambda: (), tables)
        initial._compare(part, Path(wanted.weights), wanted, stored, tensor_facts(here.state_dict()))


def test_the_second_phase_starts_where_the_first_ended():
    first, second = (tensor_facts(module(name).model.state_dict()) for name in ("stage2_6b", "stage2_6b_unmasked"))
    options = {part: dict(each) for part, each in config("stage2_6b_unmasked").module.initial.items()}
    wanted = initial.InitialWeights(**options.pop("model"))
    assert all(each["weights"] is None for each in options.values())
    stored = initial._Stored(first, lambda: (), {})
    kept = initial._compare("model", Path("first"), wanted, stored, second)
    assert kept == ["audio_matching_head.weight", "audio_matching_head.bias"]
    assert wanted.prefix == "model."


@pytest.mark.parametrize(
    ("name", "release"),
    [("stage2_1b", "internvideo2-1b-stage2"), ("stage2_6b", "internvideo2-6b-stage2-audio")],
)
def test_networks_are_the_published_ones_but_for_decoders(name, release):
    """Released files have decoders towards a teacher that no published recipe listens to."""
    decoders = sum(
        torch.Size(facts.shape).numel()
        for each, facts in published(release).items()
        if each.startswith("clip_decoders.")
    )
    own = sum(parameter.numel() for parameter in module(name).model.parameters())
    assert own == NUM_PARAMETERS[release] - decoders

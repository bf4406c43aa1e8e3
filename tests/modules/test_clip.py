"""CLIP post-training: the loss, what is frozen, the temperature, what is refused, resume."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.random_state import RandomState
from ivt2.checkpoint import read_weights
from ivt2.errors import InputError
from ivt2.losses.contrast import Contrast
from ivt2.modules import aligned
from tests.datamodules.seen import checkpoints, trainer
from tests.losses.test_sigmoid import slow_loss
from tests.modules.clip_case import FROZEN, POOL, TEXT, VISION, VOCABULARY, batch, make, make_model
from tests.modules.stage2_case import gradients

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*bottleneck.*", "ignore:.*LeafSpec.*", "ignore:.*dirpath.*", "ignore:.*log.*"
)
kinds = pytest.mark.parametrize("kind", ["small", "large"])


def step(module, data):
    """Loss of a training step."""
    module.logged.clear()
    return module.training_step(data, 0)


def loop(module, data):
    """Softmax contrast by rows: each picks its clip's captions, and its caption's clips, uniformly."""
    with torch.no_grad():
        visual = module.model.encode_video(data["video"]).double()
        textual = module.model.encode_text(data["input_ids"]).double()
    ids, temperature, total = data["sample_id"].tolist(), module.model.temperature.item(), 0.0
    for rows, columns in ((visual, textual), (textual, visual)):
        for row, own in zip(rows, ids, strict=True):
            scores = torch.stack([row @ column / temperature for column in columns])
            positives = [scores[index] for index, other in enumerate(ids) if other == own]
            total += (scores.logsumexp(0) - sum(positives) / len(positives)).item()
    return total / (2 * len(ids))


@kinds
@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [5, 3, 5, 8], [4] * 4], ids=str)
def test_the_loss_is_the_contrast_of_a_loop(kind, ids):
    module, data = make(make_model(kind)), batch(sample_id=ids)
    loss = step(module, data)
    assert loss.item() == pytest.approx(loop(module, data), rel=1e-5)
    assert module.logged["train/loss"].item() == pytest.approx(loss.item())
    assert module.logged["train/temperature"].item() == pytest.approx(0.1)


def test_the_sigmoid_loss_is_that_of_a_loop():
    module, data = make(make_model(logit_bias=-2.0), contrast=Contrast(form="sigmoid")), batch(sample_id=[5, 3, 5, 8])
    with torch.no_grad():
        visual, textual = module.model.encode_video(data["video"]), module.model.encode_text(data["input_ids"])
    loss = step(module, data)
    assert loss.item() == pytest.approx(slow_loss(visual, textual, 0.1, -2.0, data["sample_id"].tolist()), rel=1e-5)
    loss.backward()
    assert module.model.logit_bias.grad.abs().item() > 0


def test_the_bias_must_fit_the_loss():
    with pytest.raises(InputError, match="needs a learned bias"):
        make(contrast=Contrast(form="sigmoid"))
    with pytest.raises(InputError, match="has no use for"):
        make(make_model(logit_bias=-10.0))


@kinds
@pytest.mark.parametrize("num", [0, 1])
def test_smallest_batches_have_a_loss_of_zero(kind, num):
    module = make(make_model(kind))
    loss = step(module, batch(range(num)))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(each.isfinite().all() for each in gradients(module).values())
    learns = {name for name, each in module.model.named_parameters() if each.requires_grad}
    assert set(gradients(module)) == learns, "a rank without samples takes part in every collective"


@pytest.mark.parametrize(("ratio", "hidden"), [({}, None), ({"image": 0.5}, None), ({"video": 0.5}, 4)])
def test_patches_are_hidden_by_the_seed_of_a_sample(ratio, hidden):
    module, seen = make(mask_ratio=ratio), []
    module.model.vision_encoder.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    loss = step(module, batch())
    assert seen == [1 + 8 - (hidden or 0)], "hidden patches do not enter the blocks"
    if hidden is None:
        assert module.last_masked is None
        assert loss.item() == pytest.approx(loop(module, batch()), rel=1e-5)
        return
    whole = module.last_masked
    assert whole.sum(dim=1).tolist() == [hidden] * 4
    parts = []
    for rows in ((0, 1, 2), (3,)):
        step(module, batch(rows))
        parts.append(module.last_masked)
    assert torch.equal(torch.cat(parts), whole)
    assert len({tuple(row.tolist()) for row in whole}) > 1


@kinds
@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_chunks_give_the_step_of_the_whole_batch(kind, chunk):
    found = []
    for size in (None, chunk):
        module = make(make_model(kind), encode_chunk=size, mask_ratio={"video": 0.5})
        calls = []
        module.model.vision_encoder.register_forward_pre_hook(lambda _, given, to=calls: to.append(len(given[0])))
        loss = step(module, batch())
        loss.backward()
        found.append((loss.detach(), gradients(module)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    assert calls == {1: [1] * 8, 3: [2] * 4, 9: [4]}[chunk], "each of several chunks is encoded twice"


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(InputError, match="encode_chunk=0: give the clips encoded at a time"):
        make(encode_chunk=0)


@pytest.mark.parametrize(("value", "kept"), [(-1.0, 0.01), (0.005, 0.01), (7.0, 7.0)])
def test_temperature_has_a_floor_alone(value, kept):
    module = make()
    with torch.no_grad():
        module.model.temperature.fill_(value)
    module.on_train_batch_start(batch(), 0)
    assert module.model.temperature.item() == pytest.approx(kept)


def below(name, parts):
    return any(name == part or name.startswith(f"{part}.") for part in parts)


class Data(pl.LightningDataModule):
    """Two batches an epoch, and a validation at its end."""

    def __init__(self):
        super().__init__()
        self.vocabulary, self.media = VOCABULARY, {"train.toy": "video"}

    def train_dataloader(self):
        return torch.utils.data.DataLoader([batch(), batch((4, 5, 6))], batch_size=None)

    def val_dataloader(self):
        rows = torch.arange(4)
        data = batch() | {"index": rows, "clip_of_caption": rows, "caption": ["a"] * 4}
        return torch.utils.data.DataLoader([data], batch_size=None)


class Watch(pl.Callback):
    """What was in training mode and what had a gradient, by step; losses."""

    def __init__(self):
        self.training, self.with_gradient, self.losses = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.training.append({name for name, each in pl_module.model.named_modules() if each.training})
        named = pl_module.model.named_parameters()
        self.with_gradient.append({name for name, each in named if each.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def fit(module, folder, *callbacks, ckpt_path=None, **options):
    """Two epochs under Lightning."""
    del module.log
    watch = Watch()
    run = trainer(folder, watch, *callbacks, **{"max_epochs": 2, "enable_checkpointing": bool(callbacks)} | options)
    run.fit(module, Data(), ckpt_path=ckpt_path, weights_only=True)
    return watch, run


LORA = {"frozen": [VISION, f"{TEXT}.text_projection"]}
WAYS = {
    "published small": ("small", FROZEN, {POOL, "vision_align", "temperature"}),
    "published large": ("large", FROZEN, {POOL, "temperature"}),
    "text projection too": ("large", FROZEN | {"trained": [POOL, f"{TEXT}.text_projection"]}, None),
    "adapters alone": ("large", LORA, None),
}


@pytest.mark.parametrize("way", WAYS)
def test_frozen_towers_are_held_still_and_cost_the_optimizer_nothing(way, tmp_path):
    kind, parts, expected = WAYS[way]
    module = make(make_model(kind, drop=0.5), **parts)
    model = module.model
    before = {name: each.clone() for name, each in model.state_dict().items()}
    watch, run = fit(module, tmp_path)
    named = dict(model.named_parameters())
    learns = {name for name, each in named.items() if each.requires_grad}
    if expected is not None:
        assert learns == {name for name in named if below(name, expected)}
    if way == "adapters alone":
        assert learns == {name for name in named if ".lora_" in name} | {"temperature"}
    frozen = {name for name in named if below(name, parts["frozen"]) and not below(name, parts.get("trained", ()))}
    assert not learns & frozen
    data = batch()
    assert model.encode_text(data["input_ids"]).requires_grad == any(below(name, [TEXT]) for name in learns)
    assert not model.vision_encoder(data["video"]).tokens.requires_grad, "nothing is kept of a frozen trunk"
    assert all(found == learns for found in watch.with_gradient)
    optimizer = run.optimizers[0]
    listed = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert listed == {id(named[name]) for name in learns} == {id(each) for each in optimizer.state}
    after = model.state_dict()
    assert {name for name in before if not torch.equal(after[name], before[name])} == learns
    still = {name for name, _ in model.named_modules() if below(name, parts["frozen"])}
    opened = {name for name in still if below(name, parts.get("trained", ()))} | {VISION, TEXT}
    assert all(not found & (still - opened) for found in watch.training)
    assert all(f"{VISION}.blocks.1" not in found for found in watch.training)
    module.eval().train()
    assert {name for name, each in model.named_modules() if each.training} == watch.training[0]
    assert torch.equal(model.encode_text(batch()["input_ids"]), model.encode_text(batch()["input_ids"])) == (
        way != "adapters alone"
    )


def test_only_matrices_outside_the_text_tower_decay():
    module = make(make_model("large"), frozen=[f"{VISION}.blocks"])
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)
    groups = module.configure_optimizers()["optimizer"].param_groups
    spared = {id(each) for group in groups if group["weight_decay"] == 0 for each in group["params"]}
    named = {name: each for name, each in module.model.named_parameters() if each.requires_grad}
    decaying = {name for name, each in named.items() if id(each) not in spared}
    tables = {f"{VISION}.cls_token", f"{VISION}.pos_embed"}
    expected = {name for name, each in named.items() if each.ndim > 1 and not below(name, [TEXT])} - tables
    assert decaying == expected
    assert f"{POOL}.cross_attn.q.weight" in decaying


@kinds
def test_loss_falls_on_a_repeated_batch(kind):
    module = make(make_model(kind), frozen=[f"{VISION}.blocks"])
    optimizer = torch.optim.AdamW([each for each in module.parameters() if each.requires_grad], lr=1e-2)
    found = []
    for _ in range(40):
        loss = step(module, batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.on_train_batch_start(batch(), 0)
        found.append(loss.item())
    assert found[-1] < 0.1 * found[0]


@kinds
def test_resumed_training_is_that_without_a_break(kind, tmp_path):
    def run(folder, **options):
        saving = checkpoints(folder, every_n_train_steps=1)
        module = make(make_model(kind, drop=0.3), frozen=[f"{VISION}.blocks"])  # adapters drop at random
        plugins = [DirectoryCheckpointIO()]
        watch, _ = fit(module, folder, RandomState(), saving, plugins=plugins, limit_val_batches=0, **options)
        return module.state_dict(), watch.losses

    torch.manual_seed(0)
    whole, losses = run(tmp_path / "whole")
    torch.manual_seed(1)
    path = tmp_path / "whole" / "step=2.ckpt"
    resumed, later = run(tmp_path / "resumed", ckpt_path=path)
    assert len(losses) == 4
    assert later == losses[2:]
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert set(read_weights(path)) == set(whole), "a checkpoint holds the frozen towers too"


@pytest.mark.parametrize(("stage", "found"), [("fit", [{TEXT: {"weights": "some"}}]), ("test", [])])
def test_start_weights_are_for_training(stage, found, monkeypatch):
    loaded = []
    monkeypatch.setattr(aligned, "load_initial", lambda model, parts: loaded.append(parts))
    ask(make(initial={TEXT: {"weights": "some"}}), stage=stage)
    assert loaded == found


def test_evaluation_ranks_by_cosine(tmp_path):
    module = make()
    _, run = fit(module, tmp_path, max_epochs=1)
    similarity = module.retrieval_results["toy"].similarity
    with torch.no_grad():
        model, data = module.model.eval(), batch()
        expected = model.encode_video(data["video"]) @ model.encode_text(data["input_ids"]).T
    torch.testing.assert_close(similarity, expected)
    assert {"val/toy/t2v_r1", "val/toy/v2t_r1"} <= set(run.callback_metrics)
    assert not any("reranked" in name for name in run.callback_metrics)


def ask(module, vocabulary=VOCABULARY, medium="video", stage="fit"):
    """Set a module up for data of such a tokenizer and medium."""
    data = SimpleNamespace(vocabulary=vocabulary, media={"train.toy": medium})
    module._trainer = SimpleNamespace(datamodule=data)
    module.setup(stage)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("small", {"size": 121, "sep_id": 120}, r"121 entries but text_encoder\.vocab_size is 120"),
        ("small", {"sep_id": 102}, r"end token is 102 of 120.*text_encoder\.pool=last"),
        ("large", {"size": 121}, r"121 entries but text_encoder\.vocab_size is 120"),
        ("large", {"pad_id": 1}, "pads with 1, the text encoder takes 0"),
    ],
)
def test_a_tokenizer_of_another_tower_is_refused(kind, changes, message):
    module = make(make_model(kind))
    ask(module)
    with pytest.raises(InputError, match=message):
        ask(module, VOCABULARY._replace(**changes))


@pytest.mark.parametrize("medium", ["image", "video", "audio_video", "audio"])
def test_sounds_without_pictures_are_refused(medium):
    if medium != "audio":
        ask(make(), medium=medium)
        return
    with pytest.raises(InputError, match=r"datamodule\.train\.toy: holds sounds without pictures"):
        ask(make(), medium=medium)

"""Stage 2 under the trainer: parts that do not learn, start weights, and resume, with sound and without."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.random_state import RandomState
from ivt2.checkpoint import read_weights
from ivt2.errors import InputError
from tests.datamodules.seen import checkpoints, trainer
from tests.modules.stage2_case import KINDS, VOCABULARY, batch, gradients, hearing, make, make_model, whole
from tests.modules.stage2_case import trainer as looked_at

MEDIA = ("video", "audio", "audio_video")
TERMS = {"vtm": 1.0, "amlm": 1.0, "avtc": 1.0}
WHOLE = {"initial": {"model": {"weights": "here"}}}


class Data(pl.LightningDataModule):
    """The same batch at every step, and a validation after each."""

    def __init__(self):
        super().__init__()
        self.vocabulary, self.media = VOCABULARY, {"train.toy": "video"}
        self.caption_kinds = {}

    def train_dataloader(self):
        return torch.utils.data.DataLoader([batch()] * 2, batch_size=None)

    def val_dataloader(self):
        rows = torch.arange(4)
        data = batch() | {"index": rows, "clip_of_caption": rows, "caption": ["a"] * 4}
        return torch.utils.data.DataLoader([data], batch_size=None)


class Watch(pl.Callback):
    """What was in training mode and what had a gradient, by step."""

    def __init__(self):
        self.training, self.with_gradient = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        model = pl_module.model
        self.training.append({name for name, each in model.named_modules() if each.training})
        self.with_gradient.append({name for name, each in model.named_parameters() if each.grad is not None})


def build(frozen=(), trained=()):
    """A module whose towers drop at a rate of a half, and whose video encoder counts batch statistics."""
    model = make_model(drop=0.5)
    encoder = model.vision_encoder
    norm = encoder.norm_of_batch = nn.BatchNorm1d(16)
    encoder.blocks[0].register_forward_pre_hook(
        lambda block, given: (norm(given[0].flatten(0, 1)).view_as(given[0]), *given[1:])
    )
    module = make(model, frozen=frozen, trained=trained)
    del module.log  # Lightning's own, since a trainer runs
    return module


def fit(module, tmp_path):
    """Two steps, each followed by a validation, after one before the first."""
    watch = Watch()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=1, val_check_interval=1, max_steps=2,
        default_root_dir=tmp_path, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(module, Data())
    return watch, trainer.optimizers[0]


def below(name, parts):
    return any(name == part or name.startswith(f"{part}.") for part in parts)


VISION, TEXT, POOL = "vision_encoder", "text_encoder", "vision_encoder.clip_projector"


@pytest.mark.parametrize(
    ("frozen", "trained"), [([], []), ([VISION], []), ([VISION, TEXT], []), ([VISION], [POOL])], ids=str
)
def test_frozen_parts_stay_as_they_are_and_the_others_learn(tmp_path, frozen, trained):
    module = build(frozen, trained)
    before = {name: each.clone() for name, each in module.model.state_dict().items()}
    watch, optimizer = fit(module, tmp_path)
    named = dict(module.model.named_parameters())
    still = {name for name in before if below(name, frozen) and not below(name, trained)}
    learns = set(named) - still
    assert bool(still) == bool(frozen)
    assert {name for name, each in named.items() if each.requires_grad} == learns
    assert all(found <= learns for found in watch.with_gradient)
    listed = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert listed == {id(named[name]) for name in learns}
    assert {id(each) for each in optimizer.state} <= listed
    after = module.model.state_dict()
    assert {name for name in still if not torch.equal(after[name], before[name])} == set()
    moved = {name for name in learns if not torch.equal(after[name], before[name])}
    assert moved == {name for found in watch.with_gradient for name in found}
    assert {name.split(".")[0] for name in moved} >= {"vision_proj", "text_proj", "matching_head", "temperature"}
    assert any(below(name, [POOL]) for name in moved) == (VISION not in frozen or bool(trained))


def test_modes_hold_after_every_validation(tmp_path):
    module = build([VISION], [POOL])
    watch, _ = fit(module, tmp_path)
    names = {name for name, _ in module.model.named_modules()}
    opened = {name for name in names if below(name, [POOL])} | {VISION}
    expected = {name for name in names if not below(name, [VISION])} | opened
    assert expected < names
    assert watch.training == [expected, expected]
    module.eval()
    assert not any(each.training for each in module.model.modules())
    module.train()
    assert {name for name, each in module.model.named_modules() if each.training} == expected


@pytest.mark.parametrize("frozen", [[], [VISION], [TEXT], [VISION, TEXT]], ids=str)
def test_what_drops_in_frozen_towers_is_off(frozen):
    module = build(frozen).train()
    first, second = module.encode(batch()), module.encode(batch())
    assert torch.equal(first.tokens["video"], second.tokens["video"]) == (VISION in frozen)
    assert torch.equal(first.captions[None].tokens, second.captions[None].tokens) == (TEXT in frozen)
    assert first.tokens["video"].requires_grad != (VISION in frozen)  # so that nothing is kept for a backward pass
    assert first.captions[None].tokens.requires_grad != (TEXT in frozen)
    assert module.model.vision_encoder.norm_of_batch.num_batches_tracked == (0 if VISION in frozen else 2)


def test_lightning_warns_of_nothing(tmp_path, recwarn):
    fit(build([VISION]), tmp_path)
    assert not [each for each in recwarn if "eval mode" in str(each.message)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": ["vision_encodr"]}, r"frozen: the model has no part named 'vision_encodr'; did you mean vision"),
        ({"trained": [POOL]}, r"trained: 'vision_encoder\.clip_projector' is not below a frozen part"),
    ],
    ids=str,
)
def test_mistakes_are_named_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


class Mixed(pl.LightningDataModule):
    """A step of each medium."""

    def __init__(self):
        super().__init__()
        self.vocabulary, self.media = VOCABULARY, {f"train.{medium}": medium for medium in MEDIA}
        self.caption_kinds = dict.fromkeys(self.media, KINDS)

    def train_dataloader(self):
        return torch.utils.data.DataLoader([whole(medium, rows=range(2)) for medium in MEDIA], batch_size=None)


def train(folder, *, ckpt_path=None, torch_seed=0, epochs=2, **options):
    """Epochs of three steps; the generator starts elsewhere in a resumed run."""
    module = hearing(TERMS, drop=0.3, **options)
    losses = {}
    module.log = lambda name, value, **_: losses.setdefault(name, []).append(float(value))
    torch.manual_seed(torch_seed)
    run = trainer(
        folder, RandomState(), checkpoints(folder, every_n_epochs=1), plugins=[DirectoryCheckpointIO()],
        max_epochs=epochs, gradient_clip_val=1.0,
    )  # fmt: skip
    run.fit(module, Mixed(), ckpt_path=ckpt_path, weights_only=True)
    return module, losses, run


@pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*", "ignore:.*dirpath.*"
)
def test_resumed_training_is_that_without_a_break(tmp_path):
    frozen = {"frozen": ["audio_encoder"]}
    module, losses, run = train(tmp_path / "whole", **frozen)
    path = tmp_path / "whole" / "step=3.ckpt"
    resumed, later, _ = train(tmp_path / "resumed", ckpt_path=path, torch_seed=1, **frozen)
    assert {name: len(values) for name, values in losses.items()} == {
        "train/loss": 6, "train/loss_vtm": 4, "train/loss_amlm": 4, "train/loss_avtc": 2
    }  # fmt: skip
    assert later == {name: values[len(values) // 2 :] for name, values in losses.items()}
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in resumed.state_dict().items())
    assert set(read_weights(path)) == set(after), "a checkpoint does not hold the teacher"
    start = hearing(TERMS, drop=0.3).state_dict()
    moved = {name for name in after if not torch.equal(after[name], start[name])}
    assert {name.split(".")[1] for name in moved} >= {"vision_encoder", "audio_proj", "matching_head", "text_encoder"}
    assert not [name for name in moved if name.startswith("model.audio_encoder.")]
    listed = {id(each) for group in run.optimizers[0].param_groups for each in group["params"]}
    assert not listed & {id(each) for each in module.model.audio_encoder.parameters()}


def test_frozen_encoders_keep_nothing_and_drop_nothing():
    module = hearing(drop=0.5, frozen=["audio_encoder", "vision_encoder"]).train()
    first, second = (module.encode(whole()) for _ in range(2))
    for modality, encoder in (("audio", module.model.audio_encoder), ("video", module.model.vision_encoder)):
        assert not any(part.training for part in encoder.modules())
        assert torch.equal(first.tokens[modality], second.tokens[modality])
    assert not first.video.pooled.requires_grad
    assert not torch.equal(first.captions[None].tokens, second.captions[None].tokens)
    module.training_step(whole(), 0).backward()
    assert not [name for name in gradients(module) if name.startswith(("audio_encoder.", "vision_encoder."))]


@pytest.mark.parametrize(("stage", "read"), [("fit", 1), ("validate", 0), ("test", 0)])
def test_start_weights_are_read_for_training_alone(stage, read, monkeypatch):
    found = []
    monkeypatch.setattr("ivt2.modules.aligned.load_initial", lambda *given: found.append(given))
    module = make(**WHOLE)
    module._trainer = looked_at()
    module.setup(stage)
    assert found == [(module.model, WHOLE["initial"])] * read


def test_chunks_are_refused_where_they_change_the_result():
    with pytest.raises(InputError, match="encode_chunk=0: give the clips encoded at a time"):
        make(encode_chunk=0)
    model = make_model()
    model.vision_encoder.norm_of_batch = nn.BatchNorm1d(16)
    make(model).train().on_train_start()
    make(model, encode_chunk=2, frozen=["vision_encoder.norm_of_batch"]).train().on_train_start()
    with pytest.raises(InputError, match=r"encode_chunk=2: vision_encoder\.norm_of_batch normalises by .* batch"):
        make(model, encode_chunk=2).train().on_train_start()

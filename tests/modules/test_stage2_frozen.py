"""Parts of stage 2 that do not learn: what moves in two steps of the trainer, and what is held still meanwhile."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from tests.modules.stage2_case import VOCABULARY, batch, make, make_model


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

import logging
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.non_finite import NonFinite
from ivt2.checkpoint import load_checkpoint
from ivt2.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory")


class Batches(torch.utils.data.Dataset):
    """Batches of one source whose number is in their keys."""

    def __init__(self, num=12):
        self.num = num

    def __len__(self):
        return self.num

    def __getitem__(self, number):
        video = torch.randn(3, 4, generator=torch.Generator().manual_seed(number))
        return {"video": video, "number": number, "key": [f"{number}-{i}" for i in range(3)], "source": "web"}


FAULTS = {
    "loss nan": lambda loss: loss * math.nan,
    "loss infinite, gradient finite": lambda loss: loss + math.inf,
    "gradient infinite, loss finite": lambda loss: loss + Steep.apply(loss, math.inf),
    "gradient whose square overflows": lambda loss: loss + Steep.apply(loss, 1e30),
}


class Steep(torch.autograd.Function):
    """Zero with a gradient."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.slope = slope
        return x.detach() * 0

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope, None


class Module(pl.LightningModule):
    """Learns, with a fault in some batches; keeps a picture of itself after every batch."""

    def __init__(self, faulty=(), fault="loss nan", optimizer=torch.optim.AdamW):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 2)
        self.faulty, self.fault, self.make = faulty, FAULTS[fault], optimizer
        self.pictures = []

    def training_step(self, batch, batch_idx):
        loss = self.net(batch["video"]).square().mean()
        return self.fault(loss) if batch["number"] in self.faulty else loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        optimizer = self.trainer.optimizers[0]
        state = [value.clone() for state in optimizer.state.values() for value in state.values()]
        self.pictures.append([parameter.detach().clone() for parameter in self.parameters()] + state)

    def configure_optimizers(self):
        return self.make(self.parameters(), lr=0.1)


def unchanged(module, number):
    before, after = module.pictures[number - 1 : number + 1]
    return len(before) == len(after) and all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.fixture
def fit(make_trainer, tmp_path, memory_logger):
    def run(module, *, abort_after=10, steps=6, folder="c", ckpt_path=None, **options):
        guard = NonFinite(abort_after=abort_after)
        checkpoint = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(
            enable_checkpointing=True,
            plugins=[DirectoryCheckpointIO()],
            callbacks=[guard, checkpoint],
            logger=memory_logger,
            max_steps=steps,
            **options,
        )
        trainer.fit(module, torch.utils.data.DataLoader(Batches(), batch_size=None), ckpt_path=ckpt_path)
        return trainer

    return run


def counts(logger):
    return [values["train/skipped_steps"] for _, values in logger.logged if "train/skipped_steps" in values]


@pytest.mark.parametrize(("fault", "clip"), zip(FAULTS, [None, None, 1.0, 1.0], strict=True))
def test_a_bad_step_leaves_weights_and_optimizer_as_they_were(fit, memory_logger, fault, clip):
    module = Module(faulty={2}, fault=fault)
    trainer = fit(module, gradient_clip_val=clip)
    assert [unchanged(module, number) for number in range(1, 6)] == [False, True, False, False, False]
    assert trainer.global_step == 6
    assert counts(memory_logger) == [0, 0, 1, 1, 1, 1]


def test_without_the_callback_one_bad_step_spoils_the_weights(make_trainer):
    module = Module(faulty={2})
    make_trainer(max_steps=4).fit(module, torch.utils.data.DataLoader(Batches(), batch_size=None))
    assert all(parameter.isnan().all() for parameter in module.parameters())


def test_good_steps_are_those_of_a_training_without_the_callback(fit, make_trainer):
    plain, guarded = Module(), Module()
    make_trainer(max_steps=6).fit(plain, torch.utils.data.DataLoader(Batches(), batch_size=None))
    fit(guarded)
    for one, other in zip(plain.pictures, guarded.pictures, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_accumulated_batches_are_left_out_together(fit, caplog):
    module = Module(faulty={2})  # the first of the second pair
    with caplog.at_level(logging.WARNING):
        fit(module, steps=3, accumulate_grad_batches=2)
    assert unchanged(module, 3)
    assert not unchanged(module, 5)
    (line,) = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    assert line == (
        "step 1 is left out, its loss or gradient is no number: rank 0: loss nan, gradient norm nan, "
        "web/2-0 web/2-1 web/2-2 web/3-0 web/3-1 web/3-2"
    )


def test_half_precision_and_another_optimizer(fit):
    module = Module(faulty={1, 3}, optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9))
    fit(module, precision="bf16-mixed")
    assert [unchanged(module, number) for number in range(1, 6)] == [True, False, True, False, False]


def test_too_many_in_a_row_end_the_training(fit):
    module = Module(faulty={1, 2, 4, 5, 6})
    with pytest.raises(InputError, match=r"^3 steps in a row, up to step 6, had a loss or gradient that is no number"):
        fit(module, abort_after=3, steps=12)
    assert len(module.pictures) == 6
    assert unchanged(module, 5)


def test_a_resumed_run_goes_on_counting(fit, tmp_path, memory_logger):
    fit(Module(faulty={0, 2, 3}), steps=4)
    state = load_checkpoint(tmp_path / "c" / "step=4.ckpt")["callbacks"]["NonFinite"]
    assert state == {"skipped": 3, "in_a_row": 2}
    memory_logger.logged.clear()
    fit(Module(), steps=5, folder="d", ckpt_path=tmp_path / "c" / "step=4.ckpt")
    assert counts(memory_logger) == [3]
    with pytest.raises(InputError, match="3 steps in a row"):
        fit(Module(faulty=range(12)), abort_after=3, steps=9, folder="e", ckpt_path=tmp_path / "c" / "step=4.ckpt")


def test_an_abort_after_no_step_is_refused():
    with pytest.raises(InputError, match="abort_after=0"):
        NonFinite(abort_after=0)

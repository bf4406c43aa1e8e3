import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.ema import KEY, ExponentialMovingAverage
from ivt2.callbacks.random_state import RandomState
from ivt2.checkpoint import load_checkpoint
from ivt2.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory")
DECAY = 0.7


class Record(pl.Callback):
    """Weights at the start, after each optimizer step, and as each evaluation sees them."""

    def __init__(self):
        self.weights, self.evaluated = [], []

    def on_train_start(self, trainer, pl_module):
        self.weights.append(vector(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == len(self.weights):
            self.weights.append(vector(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.evaluated.append(vector(pl_module))

    on_test_batch_start = on_validation_batch_start


def vector(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).clone()


def saved(path):
    state = load_checkpoint(path)
    return torch.cat([value.flatten() for value in state[KEY].values()])


def average_of(weights):
    """Closed form: each weight with what the later steps have left of it."""
    last = len(weights) - 1
    parts = [DECAY**last * weights[0].double()]
    parts += [(1 - DECAY) * DECAY ** (last - step) * weights[step].double() for step in range(1, last + 1)]
    return torch.stack(parts).sum(dim=0)


@pytest.fixture
def fit(make_trainer, tmp_path, module, data):
    def run(folder, steps=5, *, module=module, ckpt_path=None, evaluate=True, every=1, **options):
        record = Record()
        callbacks = [
            RandomState(),
            ExponentialMovingAverage(DECAY, evaluate=evaluate),
            record,
            ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=every, save_top_k=-1),
        ]
        trainer = make_trainer(
            enable_checkpointing=True,
            plugins=[DirectoryCheckpointIO()],
            callbacks=callbacks,
            max_steps=steps,
            **options,
        )
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return trainer, record

    return run


def test_average_of_five_steps_in_closed_form(fit, tmp_path, module):
    _, record = fit("whole")
    assert len(record.weights) == 6
    for step in (1, 5):
        expected = average_of(record.weights[: step + 1])
        torch.testing.assert_close(
            saved(tmp_path / "whole" / f"step={step}.ckpt").double(), expected, atol=1e-6, rtol=0
        )
    assert torch.equal(vector(module), record.weights[-1])  # training ends with the weights themselves
    state = load_checkpoint(tmp_path / "whole" / "step=5.ckpt")["state_dict"]
    assert torch.equal(torch.cat([value.flatten() for value in state.values()]), record.weights[-1])


def test_accumulated_batches_count_as_one_step(fit, tmp_path):
    _, record = fit("whole", 2, accumulate_grad_batches=2, limit_val_batches=0)
    expected = average_of(record.weights)
    torch.testing.assert_close(saved(tmp_path / "whole" / "step=2.ckpt").double(), expected, atol=1e-6, rtol=0)


def test_resumed_equals_uninterrupted_bit_by_bit(fit, tmp_path, module):
    _, whole = fit("whole", 6)
    resumed = type(module)()
    _, rest = fit("resumed", 6, module=resumed, ckpt_path=tmp_path / "whole" / "step=2.ckpt")
    assert torch.equal(rest.weights[0], whole.weights[2])
    assert torch.equal(vector(resumed), whole.weights[-1])
    for step in (3, 6):
        one, other = (saved(tmp_path / folder / f"step={step}.ckpt") for folder in ("whole", "resumed"))
        assert torch.equal(one, other), step


def test_evaluation_uses_the_averages_and_gives_the_weights_back(fit, tmp_path, module, data):
    trainer, record = fit("whole", val_check_interval=2, check_val_every_n_epoch=None)
    seen = record.evaluated[-1]
    assert torch.equal(seen, saved(tmp_path / "whole" / "step=4.ckpt"))
    trainer.test(module, data, verbose=False)
    assert torch.equal(record.evaluated[-1], saved(tmp_path / "whole" / "step=5.ckpt"))
    assert torch.equal(vector(module), record.weights[-1])
    # The averages of the checkpoint that is tested, not those that training ended with.
    trainer.test(module, data, ckpt_path=tmp_path / "whole" / "step=3.ckpt", verbose=False)
    assert torch.equal(record.evaluated[-1], saved(tmp_path / "whole" / "step=3.ckpt"))
    assert torch.equal(vector(module), record.weights[3])


def test_evaluation_of_the_weights_themselves(fit, module, data):
    trainer, record = fit("whole", evaluate=False)
    trainer.test(module, data, verbose=False)
    assert all(torch.equal(seen, record.weights[-1]) for seen in record.evaluated)


def test_frozen_parameters_have_no_average(fit, tmp_path, module):
    module.net[0].requires_grad_(requires_grad=False)
    fit("whole", 2)
    assert set(load_checkpoint(tmp_path / "whole" / "step=2.ckpt")[KEY]) == {"net.2.weight", "net.2.bias"}


def test_half_precision_weights_have_averages_in_single(fit, tmp_path):
    _, record = fit("whole", precision="bf16-true", limit_val_batches=0)
    average = saved(tmp_path / "whole" / "step=5.ckpt")
    assert average.dtype == torch.float32
    torch.testing.assert_close(average.double(), average_of(record.weights), atol=1e-6, rtol=0)


def test_averages_start_from_a_checkpoint_without_any(make_trainer, fit, tmp_path, module, data):
    checkpoint = ModelCheckpoint(tmp_path / "plain", "{step}", every_n_train_steps=1, save_top_k=-1)
    make_trainer(
        enable_checkpointing=True, plugins=[DirectoryCheckpointIO()], callbacks=[RandomState(), checkpoint], max_steps=2
    ).fit(module, data)
    _, record = fit("resumed", 3, ckpt_path=tmp_path / "plain" / "step=2.ckpt")
    expected = DECAY * record.weights[0] + (1 - DECAY) * vector(module)
    torch.testing.assert_close(saved(tmp_path / "resumed" / "step=3.ckpt"), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_named(decay):
    with pytest.raises(InputError, match=f"decay={decay}"):
        ExponentialMovingAverage(decay)


def test_the_engine_that_hides_its_shards_is_refused(make_trainer, module):
    trainer = make_trainer()
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(InputError, match="take trainer=fsdp2 or ddp"):
        ExponentialMovingAverage().setup(trainer, module, "fit")

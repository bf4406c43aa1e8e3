import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.random_state import RandomState, capture, restore

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory")


def test_restore_repeats_every_draw():
    state = capture()
    first = (random.gauss(0, 1), np.random.randn(3).tolist(), torch.randn(3).tolist())
    restore(state)
    assert (random.gauss(0, 1), np.random.randn(3).tolist(), torch.randn(3).tolist()) == first


@pytest.fixture
def fit(tmp_path, make_trainer, module, data):
    def run(folder, *, module=module, callbacks=(), ckpt_path=None, **options):
        checkpoint = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(
            enable_checkpointing=True,
            plugins=[DirectoryCheckpointIO()],
            callbacks=[*callbacks, checkpoint],
            max_steps=11,
            **options,
        )
        trainer.fit(module, type(data)(), ckpt_path=ckpt_path)
        return trainer, module

    return run


def _parameters(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


VALIDATION = {
    "none": {"limit_val_batches": 0},
    "each epoch": {},
    "inside": {"val_check_interval": 2, "check_val_every_n_epoch": None},
}


@pytest.mark.parametrize("validation", VALIDATION)
def test_resumed_equals_uninterrupted_bit_by_bit(fit, tmp_path, module, validation):
    options = VALIDATION[validation]
    _, whole = fit("whole", callbacks=[RandomState()], **options)
    assert len(whole.losses) == 11
    for step in (2, 5, 8):  # five batches make an epoch: inside it, at its end, in a later one
        pl.seed_everything(99, verbose=False)
        resumed = type(module)()
        path = tmp_path / "whole" / f"step={step}.ckpt"
        trainer, _ = fit(f"resumed{step}", module=resumed, callbacks=[RandomState()], ckpt_path=path, **options)
        assert trainer.global_step == 11
        assert resumed.losses == whole.losses[step:], step
        assert torch.equal(_parameters(resumed), _parameters(whole))


def test_without_the_callback_a_resumed_run_differs(fit, tmp_path, module):
    _, whole = fit("whole", limit_val_batches=0)
    pl.seed_everything(99, verbose=False)
    resumed = type(module)()
    fit("resumed", module=resumed, ckpt_path=tmp_path / "whole" / "step=3.ckpt", limit_val_batches=0)
    assert resumed.losses != whole.losses[3:]


def test_validation_does_not_move_training(fit, module):
    _, plain = fit("plain", callbacks=[RandomState()], limit_val_batches=0)
    pl.seed_everything(0, verbose=False)
    validated = type(module)()
    fit("validated", module=validated, callbacks=[RandomState()], val_check_interval=1, check_val_every_n_epoch=None)
    assert validated.losses == plain.losses


def test_another_number_of_ranks_is_said_and_nothing_restored(make_trainer, module):
    trainer = make_trainer()
    trainer.state.fn = "fit"
    callback = RandomState()
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="of 2 ranks"):
        callback.on_load_checkpoint(trainer, module, {"random_state": [capture(), capture()]})
    callback.on_train_batch_start(trainer, module, None, 0)
    assert torch.equal(torch.get_rng_state(), before)

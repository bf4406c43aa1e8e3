import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.preemption import Preemption
from ivt2.callbacks.random_state import RandomState
from ivt2.checkpoint import newest_valid, read_metadata


class SignalAt(pl.Callback):
    def __init__(self, step, number):
        self.step = step
        self.number = number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def fit(make_trainer, tmp_path, data):
    def run(module, folder, *callbacks, ckpt_path=None):
        folder = tmp_path / folder
        checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_last=True)
        trainer = make_trainer(
            enable_checkpointing=True,
            plugins=[DirectoryCheckpointIO()],
            callbacks=[RandomState(), Preemption(folder), *callbacks, checkpoint],
            max_steps=12,
        )
        trainer.fit(module, type(data)(), ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_with_a_checkpoint_that_resumes_exactly(fit, tmp_path, module, number):
    handlers = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)]
    pl.seed_everything(3, verbose=False)
    whole = type(module)()
    fit(whole, "whole")
    pl.seed_everything(3, verbose=False)
    stopped = type(module)()
    with pytest.raises(SystemExit) as caught:
        fit(stopped, "stopped", SignalAt(6, number))
    assert caught.value.code == 75
    assert stopped.losses == whole.losses[:7]
    assert read_metadata(newest_valid(tmp_path / "stopped"))["global_step"] == 7
    assert [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)] == handlers
    resumed = type(module)()
    fit(resumed, "stopped", ckpt_path="last")
    assert resumed.losses == whole.losses[7:]
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["last.ckpt", "step=12.ckpt"]


def test_without_a_signal_nothing_changes(fit, module):
    handler = signal.getsignal(signal.SIGTERM)
    assert fit(module, "run").global_step == 12
    assert signal.getsignal(signal.SIGTERM) == handler

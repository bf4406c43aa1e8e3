import time

import lightning.pytorch as pl
import pytest
import torch

from ivt2.callbacks.throughput import Throughput, num_clips


def test_num_clips():
    assert num_clips({"key": ["a"], "input_ids": torch.ones(7, 2), "video": torch.ones(3, 1, 3, 4, 4)}) == 3
    assert num_clips({"key": ["a"], "x": torch.ones(7, 2)}) == 7
    assert num_clips([torch.ones(()), torch.ones(2)]) == 2
    assert num_clips(torch.ones(5)) == 5
    assert num_clips("text") == 0


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Work(pl.Callback):
    """Moves the clock: 3 s waiting before each step, 1 s in it, 100 s in validation."""

    def __init__(self, clock):
        self.clock = clock

    def on_validation_start(self, trainer, pl_module):
        self.clock.now += 100

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.clock.now += 1


class SlowData(pl.LightningDataModule):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.clock.now += 3 if self.trainer.training else 0
        return batch

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(40, 6), batch_size=4)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(2, 6))


def test_rates_and_waits(make_trainer, memory_logger, module, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("ivt2.callbacks.throughput.time", clock)
    trainer = make_trainer(
        max_steps=6,
        log_every_n_steps=2,
        logger=memory_logger,
        callbacks=[Throughput(), Work(clock)],
        val_check_interval=3,
    )
    trainer.fit(module, SlowData(clock))
    logged = [(step, values) for step, values in memory_logger.logged if "perf/step_s" in values]
    assert [step for step, _ in logged] == [1, 3, 5]
    assert all(values["perf/step_s"] == pytest.approx(1) for _, values in logged)
    assert all(values["perf/peak_memory_gb"] > 0.05 for _, values in logged)
    # The first step waits for nothing; then 3 s each; the wait before step 4 is left out for the validation in it.
    waits = [3 / 5, 3 / 5, 6 / 8]
    assert [values["perf/data_wait_ratio"] for _, values in logged] == pytest.approx(waits)
    assert [values["perf/clips_per_s"] for _, values in logged] == pytest.approx([8 / 5, 8 / 5, 8 / 8])


def test_saving_is_not_waiting(make_trainer, module):
    callback, trainer = Throughput(), make_trainer()
    trainer.strategy.connect(module)
    callback.on_train_batch_start(trainer, module, None, 0)
    callback.on_train_batch_end(trainer, module, None, torch.ones(2), 0)
    callback.on_save_checkpoint(trainer, module, {})
    time.sleep(0.01)
    callback.on_train_batch_start(trainer, module, None, 1)
    assert callback._wait_s == 0

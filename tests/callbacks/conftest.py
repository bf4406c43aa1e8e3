"""A tiny training task whose every step draws from the generators, and a loader that resumes by position."""

import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn


class Loader:
    """Batches that are a pure function of the position; its state is one integer."""

    def __init__(self, num_batches):
        self.num_batches = num_batches
        self.seen = 0

    def __len__(self):
        return self.num_batches

    def __iter__(self):
        torch.randint(100, (1,))  # as DataLoader does: an iterator draws its base seed
        while True:
            epoch, position = divmod(self.seen, self.num_batches)
            generator = torch.Generator().manual_seed(1000 * epoch + position)
            self.seen += 1
            yield torch.randn(4, 6, generator=generator)
            if self.seen % self.num_batches == 0:
                return

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class TinyData(pl.LightningDataModule):
    def __init__(self, num_batches=5):
        super().__init__()
        self.num_batches = num_batches
        self.started = 0

    def train_dataloader(self):
        return Loader(self.num_batches)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(2, 6), shuffle=True)

    def test_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(2, 6))

    def state_dict(self):
        return {"started": 7}

    def load_state_dict(self, state):
        self.started = state["started"]


class TinyModule(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.losses = []

    def training_step(self, batch, batch_idx):
        noise = random.random() + float(np.random.rand())
        loss = (self.net(batch) - noise).square().mean()
        self.losses.append(loss.item())
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.net(batch).mean() + torch.rand(()))

    def test_step(self, batch, batch_idx):
        self.log("test/tiny/t2v_r1", self.net(batch).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.fixture
def make_trainer(tmp_path):
    def make(**options):
        defaults = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
            "use_distributed_sampler": False,
        }
        return pl.Trainer(**(defaults | options))

    return make


@pytest.fixture
def module():
    pl.seed_everything(0, verbose=False)
    return TinyModule()


@pytest.fixture
def data():
    return TinyData()


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory):
    """One SQLite store for all tests: the first use creates its tables."""
    import os

    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'new folder' / 'mlflow.db'}"


@pytest.fixture
def mlflow_logger(mlflow_uri, tmp_path):
    from lightning.pytorch.loggers import MLFlowLogger

    def make(**options):
        location = str(tmp_path / "artifacts")
        return MLFlowLogger(f"task {tmp_path.name}", tracking_uri=mlflow_uri, artifact_location=location, **options)

    return make


class MemoryLogger(pl.loggers.CSVLogger):
    """Keeps (step, metrics) instead of writing them."""

    def __init__(self, folder):
        super().__init__(folder)
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, dict(metrics)))

    def save(self):
        pass


@pytest.fixture
def memory_logger(tmp_path):
    return MemoryLogger(tmp_path / "csv")

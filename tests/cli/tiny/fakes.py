"""The smallest module and datamodule that train.py can train: a line fitted to a line."""

from collections.abc import Callable

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

from ivt2.errors import InputError


class LineModule(LightningModule):
    """Learns y = 2 x; ``unused`` never gets a gradient, as a head that a step leaves aside."""

    def __init__(self, *, optimizer: Callable[..., torch.optim.Optimizer], width: int = 1, start: float = 0.0):
        super().__init__()
        if width != 1:
            raise InputError(f"width={width} is not 1: a line has one slope")
        self.line = torch.nn.Linear(1, width, bias=False)
        torch.nn.init.constant_(self.line.weight, start)
        self.unused = torch.nn.Linear(1, 1)
        self.optimizer = optimizer

    def training_step(self, batch, batch_index):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.line(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_index):
        self.log("val/slope", self.line.weight.mean(), sync_dist=True)

    def test_step(self, batch, batch_index):
        self.log("test/slope", self.line.weight.mean(), sync_dist=True)
        self.log("test/ranks", torch.tensor(float(self.trainer.world_size)), sync_dist=True)

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class LineDataModule(LightningDataModule):
    """Eight points of y = 2 x."""

    def __init__(self, *, num_points: int = 8):
        super().__init__()
        x = torch.linspace(-1, 1, num_points).unsqueeze(1)
        self.points = TensorDataset(x, 2 * x)

    def train_dataloader(self):
        return DataLoader(self.points, batch_size=2)

    def val_dataloader(self):
        return DataLoader(self.points, batch_size=2)

    def test_dataloader(self):
        return DataLoader(self.points, batch_size=2)

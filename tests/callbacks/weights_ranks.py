"""Two ranks of fits with sharded and whole weights, started by test_weights_distributed.py: folder.

Both are forks of one process, so that the imports are paid once. Each engine leaves what its ranks saw in
``<folder>/<engine>-<rank>.pt``.
"""

import logging
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import nn
from torch.distributed.tensor import DTensor

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.ema import ExponentialMovingAverage
from ivt2.callbacks.final_weights import FinalWeights
from ivt2.callbacks.non_finite import NonFinite
from ivt2.modules.sharded import FullyShardedStrategy
from ivt2.ops.sharding import shard

STEPS = 6
NAN_STEP, INFINITE_STEP = 2, 4
"""On the second rank alone: a gradient that is no number, and a loss whose gradient is sound."""


class Batches:
    def __init__(self, rank):
        self.rank, self.seen = rank, 0

    def __len__(self):
        return STEPS

    def __iter__(self):
        for number in range(self.seen, STEPS):
            self.seen += 1
            generator = torch.Generator().manual_seed(100 * self.rank + number)
            yield {"video": torch.randn(3, 4, generator=generator), "number": number, "key": [f"{self.rank}-{number}"]}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Module(pl.LightningModule):
    """After every step it remembers its weights; when it is validated, what it finds and with what."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.found = {"weights": [], "losses": [], "validated": [], "moments": []}

    def configure_model(self):
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"], units=[self.model[0]], methods=[])

    def on_train_start(self):
        self.found["first"] = whole(self.parameters())

    def training_step(self, batch, batch_idx):
        loss = self.model(batch["video"]).square().mean()
        self.found["losses"].append(loss.item())
        if self.global_rank == 1 and batch["number"] == NAN_STEP:
            loss = loss * torch.nan
        return loss + torch.inf if self.global_rank == 1 and batch["number"] == INFINITE_STEP else loss

    def validation_step(self, batch, batch_idx):
        self.found["validated"].append(self.model(batch["video"]).square().mean().item())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.found["weights"].append(whole(self.parameters()))
        optimizer = self.trainer.optimizers[0]
        self.found["moments"].append(whole(state["exp_avg"] for state in optimizer.state.values()))

    def train_dataloader(self):
        return Batches(self.global_rank)

    def val_dataloader(self):
        generator = torch.Generator().manual_seed(7)
        clip = {"video": torch.randn(3, 4, generator=generator)}
        return torch.utils.data.DataLoader([clip], batch_size=None)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def whole(tensors):
    """One vector on every rank."""
    full = [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return torch.cat([tensor.detach().flatten().clone() for tensor in full])


def fit(folder, strategy, *, ckpt_path=None):
    module, average = Module(), ExponentialMovingAverage(0.7)
    sharded = isinstance(strategy, FullyShardedStrategy)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_steps=STEPS,
        val_check_interval=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[
            NonFinite(),
            average,
            FinalWeights(folder / "weights"),
            ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1),
        ],
        plugins=[LightningEnvironment(), *([] if sharded else [DirectoryCheckpointIO()])],
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return module.found | {"average": whole(average._averages.values())}


def main(rank, folder):
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    logging.basicConfig(filename=folder / f"{rank}.log", level=logging.WARNING, format="%(message)s")
    fits = {
        "ddp": lambda: fit(folder / "ddp", "ddp"),
        "fsdp2": lambda: fit(folder / "fsdp2", FullyShardedStrategy()),
        "resumed": lambda: fit(folder / "resumed", FullyShardedStrategy(), ckpt_path=folder / "fsdp2" / "step=3.ckpt"),
    }
    for name, start in fits.items():
        torch.save(start(), folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    child = os.fork()
    main(0 if child else 1, Path(sys.argv[1]))
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

"""One rank of a two-rank fit, started by test_distributed.py: rank, folder, steps, checkpoint to resume from or -."""

import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment

from ivt2.batch import Skipped
from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.figures import Figures
from ivt2.callbacks.preemption import Preemption
from ivt2.callbacks.probe import Probe
from ivt2.callbacks.random_state import RandomState
from ivt2.callbacks.results import Results
from ivt2.callbacks.skipped import SkippedSamples
from ivt2.data.ledger import Ledger
from ivt2.metrics.probing import LabelledFeatures, probe_metrics
from ivt2.metrics.retrieval import RetrievalResult, retrieval_metrics

LEARNED = ([[0, 3, 1], [5, 8]], [[6, 7], []])
JUDGED = ([[2, 4]], [])
"""Labelled clips in the batches of each rank."""


class Loader:
    def __init__(self, rank, ledger):
        self.rank = rank
        self.ledger = ledger
        self.seen = 0

    def __len__(self):
        return 6

    def __iter__(self):
        for position in range(self.seen % 6, 6):
            self.seen += 1
            if position % 2:
                self.ledger.add(Skipped("web", f"{self.rank}-{position}", "broken", "a.tar"))
            yield torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * self.rank + position))

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Data(pl.LightningDataModule):
    def __init__(self, rank):
        super().__init__()
        self.rank = rank
        self.ledger = Ledger(1.0)
        self.ledger.add_seen(10)
        for key in range(rank + 1):
            self.ledger.add(Skipped("web", str(key), f"reason{rank}"))

    def train_dataloader(self):
        return Loader(self.rank, self.ledger)

    def test_dataloader(self):
        clip = {
            "video": torch.full((1, 1, 3, 8, 8), 100, dtype=torch.uint8),
            "index": torch.tensor([self.rank]),
            "clip_of_caption": torch.tensor([self.rank]),
            "caption": [f"clip {self.rank}"],
            "source": "set",
        }
        return torch.utils.data.DataLoader([clip], batch_size=None)

    def probe_dataloaders(self):
        return {"set": tuple([labelled_clips(rows) for rows in batches[self.rank]] for batches in (LEARNED, JUDGED))}


def labelled_clips(rows):
    """A batch of these clips, which are of two classes."""
    labels = torch.arange(9) % 2
    noise = torch.randint(200, (9, 1, 1, 1, 5), generator=torch.Generator().manual_seed(1))
    video = (noise + 50 * labels[:, None, None, None, None]).to(torch.uint8)
    return {"video": video[rows], "label": labels[rows], "sample_id": torch.tensor(rows, dtype=torch.int64)}


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        self.losses.append(loss.item())
        return loss

    def encode(self, video):
        return self.net[:2](video.flatten(1) / 255)

    def test_step(self, batch, batch_idx):
        metrics = {"raw": retrieval_metrics(torch.eye(2), torch.arange(2))}
        self.retrieval_results = {"set": RetrievalResult(torch.eye(2), torch.arange(2), torch.arange(2), metrics)}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Picture(Figures):
    """Says which frames the figure has."""

    def _save(self, trainer, name, figure):
        frames = sum(len(axes.images) for axes in figure.axes)
        sys.stdout.write(f"picture {name} {frames}\n")


class Numbers(Probe):
    """Says what it found."""

    def _draw(self, trainer):
        """Nothing."""

    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        found = {name.split("/")[-1]: curve[-1][1] for name, curve in self.state_dict()["curves"].items()}
        pl_module.eval()
        sets = [labelled_clips([0, 1, 3, 5, 6, 7, 8]), labelled_clips([2, 4])]
        features = [LabelledFeatures(pl_module.encode(clips["video"]).detach(), clips["label"]) for clips in sets]
        expected = probe_metrics(*features, k=3)
        equal = all(abs(found[name] - value) < 1e-5 for name, value in expected.items())
        sys.stdout.write(f"probed {sorted(found)} at {self.state_dict()['step']}, as one rank would: {equal}\n")


class Signal(pl.Callback):
    """SIGTERM to the last rank alone, inside step 2, when a file asks for it."""

    def __init__(self, folder):
        self.wanted = (folder / "signal").exists()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.wanted and trainer.global_step == 2 and trainer.global_rank == 1:
            os.kill(os.getpid(), 15)


def main():
    rank, folder, steps, ckpt_path = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    pl.seed_everything(0 if ckpt_path == "-" else 50, verbose=False)
    module = Module()
    torch.manual_seed(rank + 10)
    callbacks = [
        RandomState(),
        SkippedSamples(folder),
        Picture(folder),
        Results(folder),
        Preemption(folder, poll_every_n_steps=2),
        Signal(folder),
        Numbers(folder, every_n_steps=4, k=3),
        ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1),
    ]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        callbacks=callbacks,
        plugins=[LightningEnvironment(), DirectoryCheckpointIO()],
    )
    data = Data(rank)
    trainer.fit(module, data, ckpt_path=None if ckpt_path == "-" else ckpt_path)
    trainer.test(module, data, verbose=False)
    weights = torch.cat([value.flatten() for value in module.state_dict().values()]).double().sum().item()
    sys.stdout.write(f"rank {rank} losses {module.losses} weights {weights!r}\n")


if __name__ == "__main__":
    main()

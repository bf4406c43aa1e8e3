"""Started with two ranks by test_resume.py: fits, and leaves behind what each rank saw."""

import os
import sys
from pathlib import Path

import torch

from tests.datamodules.clip_sets import datamodule
from tests.datamodules.seen import Seen, checkpoints, trainer


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    web, tv = os.environ["SOURCES"].split(",")
    module, data = Seen(), datamodule({"web": web, "tv": tv}, {"tv": tv}, num_workers=1, eval_batch_size=1)
    options = {"devices": 2, "strategy": "ddp", "max_epochs": 2}
    runner = trainer(folder, checkpoints(folder / "steps", every_n_train_steps=8), limit_val_batches=0, **options)
    runner.fit(module, data)
    runner = trainer(folder, **options)
    runner.validate(module, data, verbose=False)
    seen = {"train_batches": module.train_batches, "eval_indices": module.eval_indices}
    torch.save(seen, folder / f"rank{runner.global_rank}.pt")


if __name__ == "__main__":
    main()

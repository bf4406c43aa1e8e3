"""One rank of stage 1 and of distillation under each engine, started by test_masked_engines.py.

A process starts in many seconds and trains in few, so it trains everything, one run after the other.
"""

import os
import sys
from pathlib import Path

import torch

import train

STEPS = 4
ENGINES = {"one": ["trainer=cpu"], "ddp": ["trainer=ddp"], "fsdp2": ["trainer=fsdp2"]}
EXPERIMENTS = {
    "stage1_tiny": ["module.clip_teacher.weights=null", "module.mae_teacher.weights=null", "module.masks_per_clip=2"],
    "distill_tiny": ["module.teacher.weights=null"],
}
SIZES = [
    "trainer.accelerator=cpu", "trainer.precision=32-true", f"trainer.max_steps={STEPS}", "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false", "trainer.gradient_clip_val=0.1",
    "datamodule.num_train=16", "datamodule.num_probe_train=6", "datamodule.num_probe_test=6",
    "datamodule.global_batch_size=8", "datamodule.num_workers=0", "callbacks=none", "logger=csv", "replace=true",
]  # fmt: skip


def command(folder: Path, engine: str, experiment: str) -> list[str]:
    """Command line of a run, which is on one process or on two."""
    devices = 1 if engine == "one" else 2
    return [
        "train.py", f"experiment={experiment}", *ENGINES[engine], f"trainer.devices={devices}", *SIZES,
        *EXPERIMENTS[experiment], f"paths.data_dir={folder / 'data'}", f"paths.run_dir={folder / engine / experiment}",
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = {"NODE_RANK": "0", "LOCAL_RANK": os.environ["RANK"], "WORLD_SIZE": os.environ["WORLD_SIZE"]}
    target = Path(sys.argv[1])
    for engine in ("ddp", "fsdp2"):
        for experiment in EXPERIMENTS:
            os.environ |= ranks | {"RANK": ranks["LOCAL_RANK"]}  # Lightning clears some of them after a run
            sys.argv = command(target, engine, experiment)
            train.main()
    torch.save({}, target / f"{ranks['LOCAL_RANK']}.pt")

"""Every engine, started as a user starts it, finds the losses and scores of one process."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 4
LOSSES = ("train/loss", "train/loss_vtc", "train/loss_vtm", "train/loss_mlm")
ENGINES = {
    "one": ["trainer=cpu"],
    "again": ["trainer=cpu"],
    "ddp": ["trainer=ddp", "trainer.devices=2"],
    "fsdp2": ["trainer=fsdp2", "trainer.devices=2"],
}
# The test set has an odd number of clips, so the ranks' shares differ.
SIZES = [
    "trainer.accelerator=cpu", "trainer.precision=32-true", f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false", "module.negatives_group=8", "optimizer.lr=1e-4", "datamodule.num_train=64",
    "datamodule.num_val=2", "datamodule.num_test=13", "datamodule.global_batch_size=16", "datamodule.eval_batch_size=4",
    "datamodule.num_workers=2", "trainer.limit_val_batches=0", "after_fit=current",
]  # fmt: skip


def train(folder, data, *overrides):
    """Run ``train.py`` in its own processes; the rows of its log as {column: text}, empty cells left out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable, "train.py", "experiment=stage2_tiny", "logger=csv", "callbacks=none", *SIZES,
        f"paths.data_dir={data}", f"paths.run_dir={folder}", *overrides,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    with (folder / "csv" / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def losses(rows):
    """Text of every loss at every step."""
    return {name: [row[name] for row in rows if name in row] for name in LOSSES}


def scores(rows):
    return {name: value for row in rows for name, value in row.items() if name.startswith("val/")}


def numbers(found):
    return [float(value) for values in found.values() for value in values]


class Runs:
    """Runs an engine once, and keeps what it logged."""

    def __init__(self, folder):
        self.folder = folder
        self.logged = {}

    def __call__(self, name):
        if name not in self.logged:
            saving = self._saving() if name == "fsdp2" else []
            self.logged[name] = train(self.folder / name, self.folder / "data", *ENGINES[name], *saving)
        return self.logged[name]

    def _saving(self):
        """Keep a checkpoint after half of the steps."""
        settings = {
            "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
            "dirpath": self.folder / "checkpoints",
            "filename": "'{step}'",
            "auto_insert_metric_name": "false",
            "every_n_train_steps": STEPS // 2,
            "save_top_k": -1,
        }
        final = {"_target_": "ivt2.callbacks.final_weights.FinalWeights", "folder": self.folder / "weights"}
        return [
            f"+callbacks.{name}.{key}={value}"
            for name, callback in (("checkpoint", settings), ("final_weights", final))
            for key, value in callback.items()
        ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("engines"))


@pytest.mark.slow
def test_one_process_logs_every_term_of_every_step(run):
    found = losses(run("one"))
    assert [len(values) for values in found.values()] == [STEPS] * len(LOSSES)
    for total, *terms in zip(*(map(float, values) for values in found.values()), strict=True):
        assert total == pytest.approx(sum(terms), rel=1e-6)
    assert len(set(found["train/loss_vtc"])) == STEPS
    assert len({scores(run("one"))[f"val/synthetic/{name}"] for name in ("t2v_r1", "t2v_r5", "t2v_r10")}) == 3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(run):
    assert losses(run("again")) == losses(run("one"))
    assert scores(run("again")) == scores(run("one"))


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_find_what_one_finds(run, engine):
    assert numbers(losses(run(engine))) == pytest.approx(numbers(losses(run("one"))), rel=0, abs=1e-5)
    expected = scores(run("one"))
    assert {name.split("/")[-2] for name in expected} == {"synthetic", "dual_softmax", "reranked"}
    assert scores(run(engine)) == expected


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(600)
def test_sharded_checkpoints_go_on_as_if_nothing_had_happened(run, tmp_path):
    """From the checkpoint of two processes after half of the steps."""
    whole = losses(run("fsdp2"))
    checkpoint = run.folder / "checkpoints" / f"{STEPS // 2}.ckpt"
    assert list(checkpoint.glob("*.distcp"))
    resumed = train(
        tmp_path / "resumed", run.folder / "data", *ENGINES["fsdp2"], "run=[fit]", f"ckpt_path={checkpoint}"
    )
    assert losses(resumed) == {name: values[STEPS // 2 :] for name, values in whole.items()}


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(600)
def test_one_process_evaluates_what_a_sharded_run_leaves_at_its_end(run, tmp_path):
    expected = scores(run("fsdp2"))
    left = f"ckpt_path={run.folder / 'weights'}"
    assert scores(train(tmp_path / "tested", run.folder / "data", "trainer=cpu", "run=[test]", left)) == expected

"""A run of train.py that is killed in the middle of an epoch and goes on with ``ckpt_path=last``."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ivt2.checkpoint import newest_valid, read_metadata
from tests.datamodules.clip_sets import write_clips

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.dist, pytest.mark.timeout(600)]

RUN = [
    str(ROOT / "train.py"),
    "experiment=stage2_tiny",
    "datamodule=media_text",
    "logger=csv",
    "paths.run_dir=run",
    "run=[fit]",
    "callbacks.figures=null",
    "callbacks.best=null",
    "callbacks.checkpoint.every_n_train_steps=2",
    "datamodule.global_batch_size=4",
    "vision_encoder.image_size=32",
    "text_encoder.dropout=0.1",  # draws from generators that a resume must restore
    "trainer.max_epochs=2",
    "+datamodule.budget=1.0",
    "trainer.limit_val_batches=0",
    "trainer.log_every_n_steps=1",
]
NUM_STEPS = 20


def begin(folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    shards = [f"+datamodule.{group}.web={folder.parent / 'clips'}" for group in ("train", "val")]

    def run(*arguments):
        line = [sys.executable, *RUN, *shards, *arguments]
        return subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    folder.mkdir()
    return run


def finish(process):
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err.decode()


def losses(folder):
    """Losses by step from all csv logs of a run, as their exact text."""
    names = [f"train/loss{term}" for term in ("", "_vtc", "_vtm", "_mlm")]
    rows = [row for file in sorted(folder.rglob("metrics.csv")) for row in csv.DictReader(file.open())]
    return {int(row["step"]): [row[name] for name in names] for row in rows if row.get("train/loss")}


def saved_step(folder):
    newest = newest_valid(folder)
    return 0 if newest is None else read_metadata(newest)["global_step"]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    broken = {n: {"mp4": b"", "json": {"caption": "x"}} for n in (3, 8, 14, 22, 29, 37)}
    write_clips(tmp_path / "clips", num=40, max_samples=10, bad=broken)
    whole = begin(tmp_path / "whole")
    finish(whole())

    run = begin(tmp_path / "killed")
    process = run()
    checkpoints = tmp_path / "killed" / "run" / "checkpoints"
    deadline_s = time.monotonic() + 120
    while saved_step(checkpoints) < 4 and process.poll() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    step = saved_step(checkpoints)
    assert 4 <= step < NUM_STEPS

    finish(run("ckpt_path=last"))
    expected, resumed = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert max(expected) == NUM_STEPS - 1
    after = {number: loss for number, loss in expected.items() if number >= step}
    assert after
    assert {number: resumed[number] for number in after} == after
    assert saved_step(checkpoints) == NUM_STEPS
    ours, theirs = ((tmp_path / name / "run" / "checkpoints" / "last.ckpt") for name in ("killed", "whole"))
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    lists = [(tmp_path / name / "run" / "skipped.jsonl").read_bytes() for name in ("killed", "whole")]
    assert lists[0] == lists[1]
    assert lists[0].count(b"\n") == 12

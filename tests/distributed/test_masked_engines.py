"""Whole: stage 1 and joint distillation log on two processes, under each engine, what they log on one."""

import csv
from pathlib import Path

import pytest

import train
from tests.distributed.masked_fits import EXPERIMENTS, STEPS, command
from tests.ops.launch import run_ranks
from tests.programs import run_main

TERMS = {
    "stage1_tiny": {"loss", "loss_clip_middle", "loss_clip_final", "loss_mae"},
    "distill_tiny": {
        "loss",
        *(f"{student}/loss_clip_{part}" for student in ("narrow", "wide") for part in ("middle", "final")),
    },
}


def logged(folder):
    """Numbers of each key of training, step by step."""
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return {key: [float(row[key]) for row in rows] for key in rows[0] if key.startswith("train/")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each engine logged of each experiment; the single process comes first and writes the clips."""
    folder = tmp_path_factory.mktemp("masked")
    with pytest.MonkeyPatch.context() as patch:
        for experiment in EXPERIMENTS:
            assert run_main(train.main, command(folder, "one", experiment), patch) == 0
    run_ranks(Path(__file__).with_name("masked_fits.py"), folder, timeout_s=280)
    return {
        (engine, experiment): logged(folder / engine / experiment)
        for engine in ("one", "ddp", "fsdp2")
        for experiment in EXPERIMENTS
    }


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(300)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_find_what_one_finds(runs, engine, experiment):
    expected, found = runs["one", experiment], runs[engine, experiment]
    assert {f"train/{term}" for term in TERMS[experiment]} <= set(expected)
    assert {len(values) for values in expected.values()} == {STEPS}
    assert len(set(expected["train/loss"])) == STEPS
    assert found == {key: pytest.approx(values, rel=0, abs=1e-5) for key, values in expected.items()}

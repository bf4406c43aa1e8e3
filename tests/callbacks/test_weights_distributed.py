"""Averages and left-out steps on two ranks, with whole and with sharded weights."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ivt2.checkpoint import load_checkpoint
from tests.callbacks.weights_ranks import INFINITE_STEP, NAN_STEP, STEPS

SCRIPT = Path(__file__).with_name("weights_ranks.py")
ENGINES = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder with the log of each rank, and what each rank of each fit saw."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SCRIPT.parents[2]),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, SCRIPT, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def seen(run):
    return {name: [torch.load(run / f"{name}-{rank}.pt") for rank in range(2)] for name in (*ENGINES, "resumed")}


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fault_of_one_rank_leaves_the_step_out_on_both(seen, engine):
    for rank in seen[engine]:
        for what in ("weights", "moments"):
            kept = [torch.equal(*pair) for pair in zip(rank[what][:-1], rank[what][1:], strict=True)]
            assert kept == [step in {NAN_STEP, INFINITE_STEP} for step in range(1, STEPS)]
        assert rank["weights"][-1].isfinite().all()
    assert torch.equal(seen[engine][0]["weights"][-1], seen[engine][1]["weights"][-1])


@pytest.mark.dist
@pytest.mark.slow
def test_the_first_rank_names_the_samples_of_both(run):
    lines = [line for line in (run / "0.log").read_text().splitlines() if "is left out" in line]
    assert len(lines) == 5  # two of each whole fit, one after the checkpoint
    for line, step in zip(lines, [NAN_STEP, INFINITE_STEP, NAN_STEP, INFINITE_STEP, INFINITE_STEP], strict=True):
        assert line.startswith(f"step {step} is left out")
        assert f", 0-{step}; rank 1: loss {'nan' if step == NAN_STEP else 'inf'}," in line
        assert line.endswith(f", 1-{step}")
    assert "is left out" not in (run / "1.log").read_text()


@pytest.mark.dist
@pytest.mark.slow
def test_averages_of_shards_are_those_of_whole_weights(seen):
    for engine in ENGINES:
        for rank in seen[engine]:
            average = rank["first"]
            for weights in rank["weights"]:
                average = 0.7 * average + 0.3 * weights
            torch.testing.assert_close(rank["average"], average, atol=1e-6, rtol=0)
    for name in ("losses", "validated"):
        for rank in range(2):
            assert seen["fsdp2"][rank][name] == pytest.approx(seen["ddp"][rank][name], rel=1e-5)
    torch.testing.assert_close(seen["fsdp2"][0]["average"], seen["ddp"][1]["average"], atol=1e-6, rtol=0)


@pytest.mark.dist
@pytest.mark.slow
def test_sharded_averages_go_on_from_a_checkpoint(seen):
    for whole, resumed in zip(seen["fsdp2"], seen["resumed"], strict=True):
        assert resumed["losses"] == whole["losses"][3:]
        assert resumed["validated"] == whole["validated"][3:]
        assert torch.equal(resumed["average"], whole["average"])


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES, "resumed"])
def test_what_is_left_at_the_end_is_whole_and_averaged(run, seen, engine):
    stored = load_checkpoint(run / engine / "weights")["state_dict"]
    assert list(stored) == ["model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"]
    assert torch.equal(torch.cat([value.flatten() for value in stored.values()]), seen[engine][0]["average"])

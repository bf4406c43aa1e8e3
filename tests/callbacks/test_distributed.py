import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("distributed_fit.py")
ROOT = SCRIPT.parents[2]


def _fit(folder, steps, ckpt_path="-"):
    """Run both ranks; return exit statuses and outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), folder, str(steps), ckpt_path],
            env=environment | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in ranks]
    return [process.returncode for process in ranks], [out for out, _ in outputs], [err for _, err in outputs]


def _losses(output):
    return json.loads(re.search(r"losses (\[.*?\])", output).group(1))


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_resume_exactly_and_put_their_knowledge_together(tmp_path):
    codes, whole, errors = _fit(tmp_path / "whole", 5)
    assert codes == [0, 0], errors
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "skipped.jsonl", tmp_path / "resumed")  # killed long after the checkpoint
    codes, resumed, errors = _fit(tmp_path / "resumed", 5, str(tmp_path / "whole" / "step=2.ckpt"))
    assert codes == [0, 0], errors
    for first, second in zip(whole, resumed, strict=True):
        assert _losses(second) == _losses(first)[2:]
        assert re.search(r"weights (\S+)", second).group(1) == re.search(r"weights (\S+)", first).group(1)
    assert _losses(whole[0]) != _losses(whole[1])  # each rank has its own data and its own dropout
    judged = ["effective_rank", "knn_top1", "linear_top1", "linear_top1_gain", "mean_cosine"]
    for output in [*whole, *resumed]:
        assert f"probed {judged} at 5, as one rank would: True" in output
    assert "skipped 7 of 20 samples" in whole[0]
    assert "skipped" not in whole[1]
    expected = [(rank, row, 2 * row + 1, f"{rank}-{2 * row + 1}") for rank in range(2) for row in range(2)]
    for name in ("whole", "resumed"):
        assert [path.name for path in sorted((tmp_path / name).glob("skipped*"))] == ["skipped.jsonl"]
        listed = map(json.loads, (tmp_path / name / "skipped.jsonl").read_text().splitlines())
        assert sorted((row["rank"], row["row"], row["step"], row["key"]) for row in listed) == expected
    assert "picture set/test_step00000005_queries 4" in whole[0]  # two captions, both ranks' clips
    assert "picture" not in whole[1]
    assert (tmp_path / "whole" / "result.json").exists()


@pytest.mark.dist
@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_with_a_checkpoint(tmp_path):
    (tmp_path / "signal").touch()
    codes, _, errors = _fit(tmp_path, 40)
    assert codes == [75, 75], errors
    assert (tmp_path / "last.ckpt" / "manifest.json").exists()

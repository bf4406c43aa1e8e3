"""Whole: every suite runs, and its figures come out as a table and as json."""

import json
import re

import pytest

from ivt2.cli import benchmark
from ivt2.cli.benchmarks import loader
from ivt2.cli.door import CONF
from tests.programs import run_main

SUITES = sorted(file.stem for file in (CONF / "suite").glob("*.yaml"))
TINY = {
    "loader": "num_frames=[2] isolate=[false] num_workers=1 num_clips=1 clip_frames=4 num_batches=3 pairs=1",
    "isolation": "num_readers=[1] num_frames=2 large_frames=4 num_clips=1 num_items=2 pairs=1",
    "transforms": "sizes=[[64,96]] num_frames=2 num_draws=1 pairs=1",
    "packing": "file_bytes=[2000] total_bytes=8000 num_processes=[1] pairs=1",
    "resume": "num_shards=[4] num_samples=512 step=3 num_workers=0 pairs=1",
    "kills": "trials=1 num_clips=8 num_epochs=2 save_every=1 num_workers=1",
    "views": "num_clips=1 pairs=1 teacher.encoder.depth=2 teacher.taps=[0,1]",
    "stage1_step": (
        "student.encoder.image_size=16 student.encoder.patch_size=4 student.encoder.embed_dim=16 "
        "student.encoder.depth=2 student.encoder.num_heads=2 student.clip.teacher_dim=32 student.clip.num_layers=1 "
        "student.mae.teacher_dim=32 student.mae.num_layers=1 compile=false "
        "clip_teacher.encoder.image_size=16 clip_teacher.encoder.patch_size=4 clip_teacher.encoder.embed_dim=32 "
        "clip_teacher.encoder.depth=1 clip_teacher.encoder.num_heads=2 clip_teacher.teacher.taps=[0] "
        "clip_teacher.compile=false mae_teacher.encoder.image_size=16 mae_teacher.encoder.patch_size=4 "
        "mae_teacher.encoder.embed_dim=32 mae_teacher.encoder.depth=1 mae_teacher.encoder.num_heads=2 "
        "mae_teacher.teacher.taps=[0] mae_teacher.compile=false batch_sizes=[1] device=cpu num_steps=1 peak_flops=1e9"
    ),
    "cache": "num_clips=1 pairs=1 teacher.encoder.depth=2 teacher.taps=[0,1]",
    "joint": "num_clips=1 pairs=1 teacher.encoder.depth=2 teacher.taps=[0,1]",
    "student_step": "sizes=[tiny] dtypes=[float32] modes=[eager] pairs=1",
    "stage2_step": "sizes=[tiny] num_clips.tiny=2 vision_encoders=[plain] pairs=1",
    "stage2_mfu": (
        "model.vision_encoder.image_size=16 model.vision_encoder.patch_size=4 model.vision_encoder.embed_dim=16 "
        "model.vision_encoder.depth=1 model.vision_encoder.num_heads=2 model.text_encoder.vocab_size=20 "
        "model.text_encoder.embed_dim=16 model.text_encoder.depth=2 model.text_encoder.num_heads=2 "
        "model.text_encoder.mlp_dim=16 model.text_encoder.fusion_layer=1 length=6 compile=false batch_sizes=[2] "
        "device=cpu num_steps=1 peak_flops=1e9"
    ),
    "contrast": "num_pairs=2048 width=64 chunk=64",
    "prepared": "num_frames=[4] num_workers=0 num_clips=1 clip_frames=6 num_batches=1 pairs=1",
}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command in this process; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = run_main(benchmark.main, ["benchmark", *arguments], monkeypatch)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_prints_a_table_and_writes_its_figures(run, tmp_path, suite):
    settings = [f"suite.{setting}" for setting in TINY[suite].split()]
    code, out, err = run(f"suite={suite}", *settings, "folder=kept", "output=out/figures.json")
    assert code == 0, err
    assert suite in out
    facts = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert facts["suite"] == suite
    assert facts["machine"]["cpus"] >= 1
    assert facts["figures"]
    for figure in facts["figures"]:
        assert figure["value"]["low"] <= figure["value"]["median"] <= figure["value"]["high"]
        assert figure["value"]["median"] > 0
        # CPU time is counted in hundredths of a second, and a kill may come before the first clip.
        assert suite == "kills" or all(value > 0 for name, value in figure["details"].items() if "CPU" not in name)
        assert (figure["floor"] is None) == (suite == "isolation")
    assert re.search(r"\b(\d+)/\1\b", err), "the bar came to its end"
    assert (CONF / "suite" / f"{suite}.yaml").read_text().startswith("# "), "the file says what it measures"
    if suite == "kills":
        assert [figure["value"]["median"] for figure in facts["figures"]] == [1]


def test_a_loader_that_made_nothing_while_it_was_measured_says_so(run, monkeypatch):
    monkeypatch.setattr(loader._Counter, "value", 0)
    code, _, err = run("suite=loader", *(f"suite.{setting}" for setting in TINY["loader"].split()))
    assert code == 2
    assert err.splitlines()[-1].endswith("num_batches=3: all of them were ready when the measurement began; give more")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["suite=transforms", "suite.pairs=0"], "pairs=0: must be at least 1"),
        (["suite=kills", "suite.num_clips=6"], "num_clips=6: give at least one, and clips in multiples of 4"),
        (["suite=resume", "suite.num_shards=[3]"], "num_shards=3, num_samples=100000000"),
        (["suite=loader", "suite.pairs=[1]"], "suite.pairs: expected int, got [1]"),
        (["suite=lader"], "suite=lader: no such suite; did you mean 'loader'?"),
        (["output=."], ".: cannot be written; give another output"),
    ],
)
def test_mistakes_are_one_line(run, arguments, expected):
    code, out, err = run(*arguments)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""

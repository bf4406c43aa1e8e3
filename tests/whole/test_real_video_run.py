"""Twelve recordings from the world, from json lines to prepared shards to a model that tells them apart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("IVT2_MEDIA_DIR", ROOT.parent / "shared" / "media")).resolve()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (FOLDER / "captions.jsonl").is_file(), reason=f"no recordings in {FOLDER}: set IVT2_MEDIA_DIR"
    ),
]

OVERFIT = [
    "logger=none",
    "callbacks.best=null",
    "callbacks.figures=null",
    "after_fit=current",
    # contrast alone, of the same frames in every epoch with their main captions
    "~module.terms.vtm",
    "~module.terms.mlm",
    "module.mask_ratio={video: 0.0, image: 0.0}",
    "datamodule.train_transforms=${datamodule.eval_transforms}",
    "+datamodule.train_sampling={_target_: ivt2.data.sampling.middle, _partial_: true}",
    "+datamodule.train_captions=first",
    "+datamodule.eval_captions=first",
    "datamodule.global_batch_size=6",
    "datamodule.num_workers=0",  # or forty epochs would start eighty decoder processes
    "trainer.max_epochs=40",
    "trainer.limit_val_batches=0",
]


def start(folder, *line):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, *line]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=550)


def test_a_model_learns_twelve_recordings_by_heart(tmp_path):
    packed = start(
        ROOT,
        *["-m", "ivt2.cli.shards", "source=jsonl", f"annotations={FOLDER / 'captions.jsonl'}"],
        *[f"media_root={FOLDER}", f"output={tmp_path / 'clips'}", "max_samples=5", "budget=0"],
        # small frames with many key frames: as they are, decoding would take nearly all the time of the forty epochs
        *["preparation=sparse", "preparation.video.short_side=96"],
    )
    assert packed.returncode == 0, packed.stderr
    assert "12 samples in 3 shards" in packed.stdout.replace("\n", " ")
    shards = [f"+datamodule.train.clips={tmp_path / 'clips'}", f"+datamodule.val.clips={tmp_path / 'clips'}"]
    line = [str(ROOT / "train.py"), "experiment=stage2_tiny", "datamodule=media_text", "paths.run_dir=run"]
    trained = start(tmp_path, *line, *shards, *OVERFIT)
    assert trained.returncode == 0, trained.stderr
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["val/clips/t2v_r1"] == 100
    assert metrics["val/clips/v2t_r1"] == 100

"""Bad input through the whole door of train.py: one clear line, or the run goes on and accounts for it."""

import json

import pytest

from ivt2.checkpoint import newest_valid
from tests.data.clips import giant
from tests.datamodules.clip_sets import bad_samples, write_clips

pytestmark = pytest.mark.slow  # importing Lightning, building a model for each case

SMALL = [
    "experiment=stage2_tiny",
    "datamodule=media_text",
    "logger=none",
    "paths.run_dir=run",
    "callbacks.figures=null",
    "callbacks.best=null",
    "datamodule.global_batch_size=4",
    "datamodule.num_workers=0",
    "vision_encoder.image_size=32",
    "vision_encoder.depth=1",
    "vision_encoder.num_frames=2",
    "text_encoder.depth=2",
    "text_encoder.fusion_layer=1",
    "trainer.max_epochs=1",
]


def on(folder):
    return [f"+datamodule.train.web={folder}", f"+datamodule.val.web={folder}"]


@pytest.fixture
def clips(tmp_path):
    return write_clips(tmp_path / "clips", num=8, max_samples=4)


def one_line(result):
    """The last line of stderr of a run that the user has to correct."""
    code, _, err = result
    assert code == 2, err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def rows(out):
    """Counts by reason from the table of skipped samples that was shown last."""
    lines = [line.replace("│", " ").split() for line in out.rpartition("skipped ")[2].splitlines()]
    return {cells[1]: int(cells[2]) for cells in lines if len(cells) == 3 and cells[0] == "web"}


def test_broken_samples_are_counted_and_the_run_goes_on(program, tmp_path):
    broken = [*bad_samples(), ("too_large", {"mkv": giant("ffv1", "matroska"), "json": {"caption": "giant"}})]
    folder = write_clips(tmp_path / "clips", num=24, bad={3 + i: members for i, (_, members) in enumerate(broken)})
    code, out, err = program(*SMALL, *on(folder), "run=[fit]", "+datamodule.budget=1.0", "trainer.limit_val_batches=0")
    assert code == 0, err
    expected = {}
    for reason, _ in broken:
        expected[reason] = expected.get(reason, 0) + 1
    assert rows(out) == expected
    assert (tmp_path / "run" / "result.json").exists()

    line = one_line(program(*SMALL, *on(folder), "+datamodule.budget=0", "replace=true"))
    assert "samples cannot be used (1 " in line
    assert "budget=0 allows 0: repair or remove these samples, or raise budget" in line


def test_a_truncated_shard_is_counted_against_its_manifest(program, clips, tmp_path):
    shard = tmp_path / "clips" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    arguments = [*SMALL, *on(clips), "run=[fit]", "trainer.limit_val_batches=0", "replace=true"]
    code, out, err = program(*arguments, "+datamodule.budget=1.0")
    assert code == 0, err
    assert set(rows(out)) == {"shard_truncated"}
    assert rows(out)["shard_truncated"] >= 2
    assert "shard_truncated" in one_line(program(*arguments, "+datamodule.budget=0"))


def test_shards_that_cannot_be_opened(program, clips, tmp_path):
    (tmp_path / "empty").mkdir()
    expected = "holds no shards (*.tar); write some with `python -m ivt2.cli.shards`"
    assert expected in one_line(program(*SMALL, *on("empty")))
    assert "nowhere: no such folder" in one_line(program(*SMALL, *on("nowhere"), "replace=true"))
    (tmp_path / "clips" / "shard-000001.tar").write_bytes(b"<html>404</html>" * 100)
    assert "shard-000001.tar" in one_line(program(*SMALL, *on(clips), "replace=true"))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["experiment=stage2_tyni"], "experiment=stage2_tyni: no such experiment; did you mean 'stage2_tiny'?"),
        (["optimizer.lr_=1e-3"], "optimizer.lr_: no such key; did you mean 'lr'?"),
        (["datamodule.train.web=clips"], "datamodule.train.web: new here; add it as +datamodule.train.web=..."),
        (["datamodule.val=???"], "datamodule.val: has no value; set it with datamodule.val="),
        (["module.mask_ratio.video=1.0"], "ratio"),
        (["vision_encoder.image_size=40"], "image_size=40"),
        (["datamodule.global_batch_size=12"], "a training set holds only 8 samples; set it to 8 or less"),
        (["paths.run_dir=clips/manifest.json/run"], "clips/manifest.json/run: cannot write there (Not a directory)"),
        (["ckpt_path=nowhere.ckpt"], "ckpt_path: nowhere.ckpt does not exist; give a checkpoint, or 'last'"),
        (["ckpt_path=last", "run=[test]"], "checkpoints holds no checkpoint; give the paths.run_dir of a run"),
        (["ckpt_path=clips/manifest.json"], "is a file; an ivt2 checkpoint is a folder"),
        (["text_encoder.vocab_size=50"], "vocabulary size 50 leaves no room for words"),
    ],
)
def test_mistakes_are_one_line(program, clips, changed, expected):
    given = [] if changed[0].startswith("datamodule.train.") else on(clips)
    assert expected in one_line(program(*SMALL, *given, *changed))


def test_checkpoints_that_do_not_fit_or_are_damaged(program, clips, tmp_path):
    arguments = [*SMALL, *on(clips), "after_fit=current"]
    code, _, err = program(*arguments, "run=[fit]", "trainer.limit_val_batches=0")
    assert code == 0, err
    saved = newest_valid(tmp_path / "run" / "checkpoints")
    for run in ("[test]", "[fit]"):
        other = [f"ckpt_path={saved}", f"run={run}", "paths.run_dir=other", "replace=true", "vision_encoder.depth=2"]
        line = one_line(program(*arguments, *other, "text_encoder.mlp_dim=64"))
        assert "checkpoint of another architecture" in line
        assert "missing (model.vision_encoder.blocks.1." in line
        assert "0 unexpected" in line
        assert "of another shape (model.text_encoder." in line

    result = (tmp_path / "run" / "result.json").read_bytes()
    for file in (tmp_path / "run" / "checkpoints").glob("*/state.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    assert "checkpoints is damaged; restore one" in one_line(program(*arguments, "ckpt_path=last"))
    assert "state.safetensors: damaged" in one_line(program(*arguments, f"ckpt_path={saved}"))
    assert (tmp_path / "run" / "result.json").read_bytes() == result, "nothing that was there is lost"


def test_last_passes_over_a_damaged_checkpoint(program, clips, tmp_path):
    arguments = [*SMALL, *on(clips), "run=[fit]", "trainer.limit_val_batches=0"]
    often = ["callbacks.checkpoint.every_n_train_steps=1", "callbacks.checkpoint.save_top_k=-1"]
    assert program(*arguments, *often)[0] == 0
    folder = tmp_path / "run" / "checkpoints"
    newest = newest_valid(folder)
    for link in [path for path in folder.iterdir() if path.resolve() == newest.resolve()]:
        (link / "model.safetensors").write_bytes(b"")
    (folder / "last.ckpt" / "model.safetensors").write_bytes(b"")
    older = newest_valid(folder)
    assert older is not None
    code, _, err = program(*arguments, "ckpt_path=last", "trainer.max_epochs=2")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]

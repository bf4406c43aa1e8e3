"""Exact: the dashboard, the list and the table say what the ledger counted, whenever a run was killed."""

import json
import shutil
from pathlib import Path

import pytest

from ivt2.batch import Skipped
from ivt2.callbacks.skipped import SkippedSamples
from ivt2.data.ledger import Ledger
from ivt2.errors import InputError
from tests.datamodules.clip_sets import datamodule, write_clips
from tests.datamodules.seen import Seen, checkpoints

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*bottleneck.*", "ignore:.*isinstance.*LeafSpec.*", "ignore:.*used to create.*"
)


@pytest.fixture
def ledger():
    ledger = Ledger(1.0)
    ledger.add_seen(100)
    for source, reason, count in (("web[vid]", "text_empty", 2), ("yt", "text_empty", 1), ("yt", "no stream", 4)):
        for position in range(count):
            ledger.add(Skipped(source, f"{position}", reason))
    return ledger


@pytest.fixture
def reporting(make_trainer, tmp_path):
    """Makes a Trainer whose run folder is ``tmp_path / "run"``."""

    def make(**options):
        return make_trainer(callbacks=[SkippedSamples(tmp_path / "run")], **options)

    return make


def test_counts_are_logged_at_each_interval(reporting, memory_logger, module, data, ledger):
    data.ledger = ledger
    ledger.padded_sounds = 5
    reporting(max_steps=4, logger=memory_logger, log_every_n_steps=2, limit_val_batches=0).fit(module, data)
    logged = [(step, values) for step, values in memory_logger.logged if "data/skipped/text_empty" in values]
    assert [step for step, _ in logged] == [1, 3]
    assert logged[0][1]["data/skipped/text_empty"] == 3
    assert logged[0][1]["data/skipped/no_stream"] == 4
    assert logged[0][1]["data/padded_sounds"] == 5


def test_table_at_the_end(reporting, module, data, ledger, capsys):
    data.ledger = ledger
    trainer = reporting(max_steps=1)
    for run in (trainer.fit, trainer.validate, trainer.test):
        run(module, data)
        shown = capsys.readouterr().out
        assert "skipped 7 of 100 samples" in shown
        assert "web[vid]" in shown  # as it stands, not as markup
        assert [line.split()[-2] for line in shown.splitlines() if "no stream" in line] == ["4"]


@pytest.mark.parametrize("ledger", [Ledger(0), None])
def test_quiet_when_nothing_was_skipped(reporting, module, data, capsys, ledger):
    data.ledger = ledger
    trainer = reporting(max_steps=1)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert capsys.readouterr().out == ""
    assert not [name for name in trainer.callback_metrics if name.startswith("data/")]
    assert not list(Path(trainer.default_root_dir).glob("run/*"))


BROKEN = {2: {"mp4": b"", "txt": "broken"}, 3: {"json": {"caption": "no video"}}}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    bad = {**BROKEN, 9: {"mp4": b"\x00" * 64, "json": {"caption": " "}}}
    return {
        "train": {"web": write_clips(root / "web", num=12, max_samples=4, bad=bad)},
        "val": {"tv": write_clips(root / "tv", num=5, prefix="tv", bad=BROKEN)},
    }


def fit(make_trainer, folder, data, *callbacks, ckpt_path=None, **options):
    trainer = make_trainer(callbacks=[*callbacks, SkippedSamples(folder)], **{"max_epochs": 2, **options})
    trainer.fit(Seen(), data, ckpt_path=ckpt_path, weights_only=True)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_skipped_sample_is_listed_where_it_was_met(make_trainer, clips, tmp_path):
    data = datamodule(**clips)
    fit(make_trainer, tmp_path, data, val_check_interval=2, num_sanity_val_steps=1)
    listed = rows(tmp_path / "skipped.jsonl")
    assert list(listed[0]) == ["stage", "epoch", "step", "source", "shard", "key", "reason", "rank", "row"]
    assert [row["row"] for row in listed] == list(range(len(listed)))
    found = {(row["stage"], row["source"], row["shard"], row["key"], row["reason"]) for row in listed}
    assert found == {
        ("train", "web", "shard-000000.tar", "clip02", "not_video"),
        ("train", "web", "shard-000000.tar", "clip03", "video_missing"),
        ("train", "web", "shard-000002.tar", "clip09", "text_empty"),
        ("validate", "tv", "shard-000000.tar", "tv02", "not_video"),
        ("validate", "tv", "shard-000000.tar", "tv03", "video_missing"),
        ("sanity_check", "tv", "shard-000000.tar", "tv02", "not_video"),
        ("sanity_check", "tv", "shard-000000.tar", "tv03", "video_missing"),
    }
    assert len(listed) == data.ledger.skipped == 2 * 3 + 2 * 2 + 2
    assert [row["stage"] for row in listed[:2]] == ["sanity_check"] * 2
    trained = [row for row in listed if row["stage"] == "train"]
    batches = datamodule(**clips)
    batches.setup("fit")
    loader = batches.train_dataloader()
    expected = [
        (epoch, step, entry.key)
        for epoch in range(2)
        for step, batch in enumerate(loader, 3 * epoch)
        for entry in batch["skipped"]
    ]
    assert [(row["epoch"], row["step"], row["key"]) for row in trained] == expected
    assert data.ledger.listener is None


@pytest.mark.parametrize("validating", [False, True])
def test_a_killed_run_that_goes_on_lists_each_sample_once(make_trainer, clips, tmp_path, validating):
    options = {"val_check_interval": 2} if validating else {"limit_val_batches": 0}
    saver = checkpoints(tmp_path / "steps", every_n_train_steps=1)
    whole = datamodule(**clips)
    fit(make_trainer, tmp_path / "whole", whole, saver, enable_checkpointing=True, **options)
    expected = (tmp_path / "whole" / "skipped.jsonl").read_bytes()
    for step in (1, 2, 4):
        folder = tmp_path / f"killed{step}"
        shutil.copytree(tmp_path / "whole", folder)  # a run that was killed long after its last checkpoint
        data = datamodule(**clips)
        fit(make_trainer, folder, data, ckpt_path=tmp_path / "steps" / f"step={step}.ckpt", **options)
        if not validating:
            assert (folder / "skipped.jsonl").read_bytes() == expected
        listed = rows(folder / "skipped.jsonl")
        assert len({row["row"] for row in listed}) == len(listed) == data.ledger.skipped
        trained = [row for row in rows(tmp_path / "whole" / "skipped.jsonl") if row["stage"] == "train"]
        keys = ("epoch", "step", "shard", "key", "reason")
        again = [[row[name] for name in keys] for row in listed if row["stage"] == "train"]
        assert again == [[row[name] for name in keys] for row in trained]


def test_a_new_run_replaces_the_list_and_evaluation_has_its_own(make_trainer, clips, tmp_path):
    for _ in range(2):
        data = datamodule(**clips)
        trainer = make_trainer(max_epochs=1, limit_val_batches=0, callbacks=[SkippedSamples(tmp_path)])
        trainer.fit(Seen(), data)
        trainer.test(Seen(), data, verbose=False)
    trainer.limit_val_batches = 1.0
    trainer.validate(Seen(), data, verbose=False)
    assert len(rows(tmp_path / "skipped.jsonl")) == 3
    for stage in ("test", "validate"):
        assert [(row["stage"], row["key"]) for row in rows(tmp_path / f"skipped-{stage}.jsonl")] == [
            (stage, "tv02"),
            (stage, "tv03"),
        ]
    assert data.ledger.skipped == 3 + 2 + 2


def test_the_sample_that_breaks_the_budget_is_listed(make_trainer, clips, tmp_path):
    data = datamodule(**clips, budget={"default": 0, "video_missing": 1.0, "text_empty": 1.0})
    with pytest.raises(InputError, match=r"1 not_video.*budget.default=0 allows 0"):
        fit(make_trainer, tmp_path, data, limit_val_batches=0)
    assert rows(tmp_path / "skipped.jsonl")[-1]["key"] == "clip02"
    assert data.ledger.listener is None


def test_a_trial_step_leaves_no_list(make_trainer, clips, tmp_path):
    fit(make_trainer, tmp_path / "run", datamodule(**clips, global_batch_size=12), fast_dev_run=True)
    assert not (tmp_path / "run").exists()


def test_the_list_goes_to_the_mlflow_run(make_trainer, mlflow_logger, clips, tmp_path):
    logger = mlflow_logger()
    data = datamodule(**clips)
    trainer = make_trainer(max_epochs=1, limit_val_batches=0, logger=logger, callbacks=[SkippedSamples(tmp_path)])
    trainer.fit(Seen(), data)
    trainer.test(Seen(), data, verbose=False)
    stored = {path.name: path.read_bytes() for path in (tmp_path / "artifacts").rglob("skipped*")}
    assert stored == {path.name: path.read_bytes() for path in tmp_path.glob("skipped*.jsonl")}
    assert len(stored) == 2

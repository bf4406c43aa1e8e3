"""Exact: a Lightning run that is resumed anywhere sees what the uninterrupted one sees."""

import os
import subprocess
import sys

import pytest
import torch

from ivt2.batch import Skipped
from tests.datamodules.clip_sets import datamodule, write_clips
from tests.datamodules.seen import Seen, checkpoints, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*bottleneck.*", "ignore:.*isinstance.*LeafSpec.*"
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    broken = {5: {"mp4": b"", "txt": "broken"}}
    return {"web": write_clips(root / "web", num=17, bad=broken), "tv": write_clips(root / "tv", num=9, prefix="tv")}


def fit(sources, folder, *callbacks, ckpt_path=None, num_workers=0, val=None, **options):
    module, data = Seen(), datamodule(sources, val, num_workers=num_workers)
    trainer(folder, *callbacks, **options).fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, data


LENGTHS = [
    {"max_epochs": 3},
    {"max_steps": 18},
    {"max_epochs": 4, "limit_train_batches": 4},
    {"max_epochs": 2, "limit_train_batches": 0.5},
]


@pytest.mark.parametrize("options", LENGTHS, ids=str)
@pytest.mark.parametrize("validating", [False, True])
def test_resume_from_many_steps(sources, tmp_path, options, validating):
    val = {"tv": sources["tv"]} if validating else None
    saver = checkpoints(tmp_path / "steps", every_n_train_steps=1)
    whole, data = fit(sources, tmp_path, saver, val=val, **options)
    total = len(whole.train_batches)
    assert total == {3: 18, None: 18, 4: 16, 2: 6}[options.get("max_epochs")]
    for step in sorted({1, 3, 4, 5, total // 2, total - 4, total - 1}):
        path = tmp_path / "steps" / f"step={step}.ckpt"
        resumed, again = fit(sources, tmp_path, ckpt_path=path, val=val, **options)
        assert resumed.train_batches == whole.train_batches[step:], step
        if not validating:
            assert again.ledger.state_dict() == data.ledger.state_dict()


@pytest.mark.parametrize("when", [{"every_n_epochs": 1, "save_on_train_epoch_end": True}, {"every_n_epochs": 1}])
def test_resume_at_the_end_of_an_epoch(sources, tmp_path, when):
    """Lightning restores no loader state here; the datamodule's own state has to do."""
    val = {"tv": sources["tv"]}
    whole, _ = fit(sources, tmp_path, checkpoints(tmp_path / "ends", **when), val=val, max_epochs=3)
    for step in (6, 12):
        path = tmp_path / "ends" / f"step={step}.ckpt"
        resumed, _ = fit(sources, tmp_path, ckpt_path=path, val=val, max_epochs=3)
        assert resumed.train_batches == whole.train_batches[step:]


def test_resume_within_an_epoch_with_validation_between(sources, tmp_path):
    saver = checkpoints(tmp_path / "steps", every_n_train_steps=2)
    options = {"val": {"tv": sources["tv"]}, "max_epochs": 2, "val_check_interval": 2, "num_workers": 2}
    whole, _ = fit(sources, tmp_path, saver, **options)
    assert len(whole.train_batches) == 12
    resumed, _ = fit(sources, tmp_path, ckpt_path=tmp_path / "steps" / "step=4.ckpt", **options)
    assert resumed.train_batches == whole.train_batches[4:]


def test_a_run_starts_from_the_beginning_unless_it_is_resumed(sources, tmp_path):
    data = datamodule(sources)
    runs = []
    for _ in range(2):
        module = Seen()
        trainer(tmp_path, max_epochs=1).fit(module, data)
        runs.append(module.train_batches)
    assert runs[0] == runs[1]


def test_overfitting_repeats_the_same_batches(sources, tmp_path):
    module, _ = fit(sources, tmp_path, max_epochs=3, overfit_batches=2)
    assert module.train_batches == module.train_batches[:2] * 3


def test_evaluation_in_a_trainer_sees_every_clip_once_and_keeps_the_accounts(sources, tmp_path):
    module, data = Seen(), datamodule({}, sources)
    trainer(tmp_path).validate(module, data, verbose=False)
    assert module.eval_indices == [index for index in range(17) if index != 5] + list(range(9))
    assert data.ledger.counts == {("web", "not_video"): 1}
    assert data.ledger.seen == 26
    trainer(tmp_path).test(module, data, verbose=False)
    assert data.ledger.seen == 52


def test_testing_a_checkpoint_leaves_the_accounts_alone(sources, tmp_path):
    saver = checkpoints(tmp_path / "steps", every_n_train_steps=3)
    fit(sources, tmp_path, saver, max_steps=3)
    data = datamodule(sources, {"tv": sources["tv"]})
    data.ledger.add(Skipped("x", "y", "z"))
    trainer(tmp_path).test(Seen(), data, ckpt_path=tmp_path / "steps" / "step=3.ckpt", verbose=False, weights_only=True)
    assert data.ledger.seen == 9
    assert data.ledger.by_reason() == {"z": 1}


@pytest.mark.dist
@pytest.mark.slow
def test_resume_on_other_numbers_of_ranks(sources, tmp_path):
    whole, data = fit(sources, tmp_path, max_epochs=2)
    environment = {**os.environ, "SOURCES": f"{sources['web']},{sources['tv']}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += [
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "-m",
        "tests.datamodules.distributed_fit",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, timeout=200, env=environment, capture_output=True)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for step, (keys, seeds, _) in enumerate(whole.train_batches):
        parts = [rank["train_batches"][step] for rank in ranks]
        assert parts[0][0] + parts[1][0] == keys
        assert parts[0][1] + parts[1][1] == seeds
    assert sorted(ranks[0]["eval_indices"] + ranks[1]["eval_indices"]) == list(range(9))
    resumed, again = fit(sources, tmp_path, ckpt_path=tmp_path / "steps" / "step=8.ckpt", max_epochs=2)
    assert resumed.train_batches == whole.train_batches[8:]
    assert again.ledger.state_dict() == data.ledger.state_dict()

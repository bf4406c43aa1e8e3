"""Exact: the embedded clips come with the numbers of their motions, from the shards of the dataset with captions."""

from pathlib import Path

import pytest
import torch

from ivt2.data.manifest import read_manifest
from ivt2.data.synthetic import MOTIONS, make_scenes
from ivt2.datamodules.synthetic import SyntheticDataModule
from ivt2.datamodules.synthetic_clips import SyntheticClipDataModule
from ivt2.errors import InputError


def datamodule(folder, **changed):
    arguments = {
        "folder": str(folder),
        "num_train": 8,
        "num_probe_train": 5,
        "num_probe_test": 6,
        "image_size": 48,
        "num_frames": 4,
        "global_batch_size": 4,
        "eval_batch_size": 4,
        "progress": False,
    }
    return SyntheticClipDataModule(**{**arguments, **changed})


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    module = datamodule(tmp_path_factory.mktemp("synthetic"))
    module.prepare_data()
    module.setup("fit")
    return module


def motions(batches):
    return {
        key: MOTIONS[label]
        for batch in batches
        for key, label in zip(batch["key"], batch["label"].tolist(), strict=True)
    }


def test_training_gives_each_clip_of_the_training_split_once_with_its_motion(ready):
    batches = list(ready.train_dataloader())
    assert motions(batches) == {scene.key: scene.combination.motion for scene in make_scenes("train", 8, 0)}
    for batch in batches:
        assert batch["video"].shape == (4, 4, 3, 48, 48)
        assert batch["video"].dtype == torch.uint8
        assert not batch["skipped"]


def test_the_probe_is_fitted_and_tested_on_clips_of_other_splits(ready):
    fitted, tested = (list(loader) for loader in ready.probe_dataloaders()["motion"])
    assert motions(fitted) == {scene.key: scene.combination.motion for scene in make_scenes("val", 5, 0)}
    assert motions(tested) == {scene.key: scene.combination.motion for scene in make_scenes("test", 6, 0)}


def test_the_training_shards_are_those_with_captions(ready, tmp_path):
    both = SyntheticDataModule(
        folder=str(tmp_path), num_train=8, num_val=1, num_test=1, image_size=48, num_frames=4, global_batch_size=4,
        eval_batch_size=4, progress=False,
    )  # fmt: skip
    both.prepare_data()
    ours, theirs = (read_manifest(Path(path)).hash for path in (ready.folders["train"], both.split_folders["train"]))
    assert ours == theirs
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.tar")}
    datamodule(tmp_path, num_probe_train=1, num_probe_test=1).prepare_data()
    assert len(list(tmp_path.rglob("*.tar"))) == 5
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())


def test_sizes_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(InputError, match="num_clips=99999"):
        datamodule(tmp_path, num_train=1, num_probe_train=99999).prepare_data()

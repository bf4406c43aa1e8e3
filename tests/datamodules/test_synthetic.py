"""Exact: the datamodule writes its shards once and streams what they hold."""

import json

import pytest
import torch

from ivt2.data.synthetic import Combination, make_scenes
from ivt2.data.text import normalize_caption
from ivt2.data.transforms import Resize
from ivt2.datamodules.synthetic import SyntheticDataModule
from ivt2.errors import InputError


def datamodule(folder, **changed):
    arguments = {
        "folder": str(folder / "clips"),
        "num_train": 12,
        "num_val": 5,
        "num_test": 6,
        "image_size": 48,
        "num_frames": 4,
        "global_batch_size": 4,
        "eval_batch_size": 4,
        "progress": False,
    }
    return SyntheticDataModule(**{**arguments, **changed})


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    module = datamodule(tmp_path_factory.mktemp("synthetic"))
    module.prepare_data()
    module.setup("fit")
    module.setup("test")
    return module


def test_training_batches_hold_each_clip_once_with_one_of_its_captions(ready):
    batches = list(ready.train_dataloader())
    captions = {scene.key: map(normalize_caption, scene.captions) for scene in make_scenes("train", 12, 0)}
    assert sorted(key for batch in batches for key in batch["key"]) == sorted(captions)
    for batch in batches:
        assert batch["video"].shape == (4, 4, 3, 48, 48)
        assert batch["video"].dtype == torch.uint8
        assert batch["source"] == "synthetic"
        assert not batch["skipped"]
        for key, ids in zip(batch["key"], batch["input_ids"], strict=True):
            assert ids.tolist() in [ready.tokenizer([text])[0][0].tolist() for text in captions[key]]


@pytest.mark.parametrize(("split", "num"), [("val", 5), ("test", 6)])
def test_evaluation_ranks_the_first_caption_of_each_clip_of_its_split(ready, split, num):
    (loader,) = ready.val_dataloader() if split == "val" else ready.test_dataloader()
    batches = list(loader)
    assert [key for batch in batches for key in batch["key"]] == [f"{split}_{i:06d}" for i in range(num)]
    expected = [scene.captions[0] for scene in make_scenes(split, num, 0)]
    assert [normalize_caption(text) for batch in batches for text in batch["caption"]] == [
        normalize_caption(text) for text in expected
    ]
    assert torch.cat([batch["clip_of_caption"] for batch in batches]).tolist() == list(range(num))
    assert all(batch["source"] == "synthetic" for batch in batches)
    assert not any(batch["skipped"] for batch in batches)


def test_held_out_captions_fit_the_vocabulary_and_stay_apart(ready):
    texts = [normalize_caption(text) for scene in make_scenes("test", 100, 0) for text in scene.captions]
    ids, valid = ready.tokenizer(texts)
    assert (ids != ready.vocabulary.unk_id).all()
    assert valid.sum(1).tolist() == [1 + len(text.split()) for text in texts]
    assert len({tuple(row.tolist()) for row in ids}) == len(texts)
    assert ready.vocabulary.size <= 256


def test_the_three_splits_share_no_combination(ready):
    from ivt2.data.shards import ShardSet

    shown = []
    for folder in ready.split_folders.values():
        shards = ShardSet.open(folder)
        facts = [json.loads(shards.read(i).members["json"]) for i in range(len(shards))]
        shown.append({Combination(*(fact["attributes"][name] for name in Combination._fields)) for fact in facts})
    assert [len(combinations) for combinations in shown] == [12, 5, 6]
    assert len(set.union(*shown)) == 23


def test_every_sampled_frame_shows_the_first_object_in_its_colour(ready):
    (loader,) = ready.test_dataloader()
    rgb = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "purple": (1, 0, 1)}
    videos = torch.cat([batch["video"] for batch in loader]).float() / 255
    for video, scene in zip(videos, make_scenes("test", 6, 0), strict=True):
        wanted = torch.tensor(rgb.get(scene.combination.colour, (1, 1, 1)))[:, None, None]
        assert ((video - wanted).abs().amax(dim=1) < 0.45).flatten(1).any(1).all()


def test_transforms_apply_to_the_written_frames(tmp_path):
    module = datamodule(tmp_path, train_transforms=[Resize(32)], num_train=4)
    module.prepare_data()
    module.setup("fit")
    assert next(iter(module.train_dataloader()))["video"].shape == (4, 4, 3, 32, 32)


def test_shards_are_written_once(tmp_path):
    datamodule(tmp_path).prepare_data()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    datamodule(tmp_path, seed=3).prepare_data()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")} == before
    assert len(before) == 3


def test_other_clips_are_written_when_the_data_seed_differs(tmp_path):
    hashes = []
    for data_seed in (0, 1):
        module = datamodule(tmp_path, data_seed=data_seed)
        module.prepare_data()
        module.setup("fit")
        hashes.append(module.manifest_hash)
    assert hashes[0] != hashes[1]


def test_sizes_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(InputError, match="image_size=47"):
        datamodule(tmp_path, image_size=47).prepare_data()
    with pytest.raises(InputError, match="num_clips=99999"):
        datamodule(tmp_path, num_train=1, num_val=99999).prepare_data()


def test_twins_bring_their_sound_and_captions_of_each_kind(tmp_path):
    module = datamodule(
        tmp_path, num_train=4, num_val=2, num_test=2, medium="audio_video", caption_kinds=["video", "audio"],
        caption_kind="video",
    )  # fmt: skip
    module.prepare_data()
    module.setup("fit")
    assert module.media == {"train.synthetic": "audio_video", "val.synthetic": "audio_video"}
    batch = next(iter(module.train_dataloader()))
    scenes = {scene.key: scene for scene in make_scenes("train", 4, 0, twins=True)}
    assert batch["audio"].shape == (4, 998, 64)
    for kind in ("video", "audio"):
        for key, ids in zip(batch["key"], batch["texts"][kind].input_ids, strict=True):
            texts = [normalize_caption(text) for text in scenes[key].captions_by_kind[kind]]
            assert ids.tolist() in module.tokenizer(texts)[0].tolist()
    evaluated = next(iter(module.val_dataloader()[0]))
    expected = [scene.captions_by_kind["video"][0] for scene in make_scenes("val", 2, 0, twins=True)]
    assert evaluated["caption"] == expected
    assert evaluated["audio"].any(dim=2).any(dim=1).all()


@pytest.mark.dist
def test_worker_processes_give_the_same_batches(tmp_path, ready):
    module = datamodule(tmp_path, num_workers=2)
    module.prepare_data()
    module.setup("test")
    for ours, theirs in zip(module.test_dataloader()[0], ready.test_dataloader()[0], strict=True):
        assert ours["key"] == theirs["key"]
        assert torch.equal(ours["video"], theirs["video"])

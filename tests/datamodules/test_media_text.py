"""Exact: batches depend on the step alone; every sample is used or accounted for; bad input speaks in one line."""

import json
from functools import partial

import pytest
import torch

from ivt2.batch import MediaTextBatch, RetrievalBatch
from ivt2.data.sampling import dense_random, uniform
from ivt2.data.transforms import Resize
from ivt2.errors import InputError
from ivt2.ops.random import derive_seed
from tests.data.clips import encode
from tests.datamodules.clip_sets import LetterTokenizer, bad_samples, datamodule, write_clips


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {"web": write_clips(root / "web", num=18), "tv": write_clips(root / "tv", num=9, prefix="tv")}


def ready(*args, stage="fit", share=(0, 1), **options):
    """A datamodule whose rank and world are given instead of taken from a trainer."""
    module = datamodule(*args, **options)
    module._rank_and_world = lambda: share
    module.setup(stage)
    return module


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        equal = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert equal, name


def test_a_training_batch_is_what_the_contract_says(sources):
    module = ready(sources)
    batch = next(iter(module.train_dataloader()))
    assert batch.keys() == {*MediaTextBatch.__required_keys__, "video"}
    assert batch["medium"] == "video"
    assert batch["video"].shape == (4, 2, 3, 16, 16)
    assert batch["video"].dtype == torch.uint8
    assert batch["source"] in sources
    offset = 0 if batch["source"] == "web" else 18
    for key, sample_id, seed, ids in zip(
        batch["key"], batch["sample_id"].tolist(), batch["seed"].tolist(), batch["input_ids"], strict=True
    ):
        number = sample_id - offset
        assert key.endswith(f"{number:02d}")
        assert seed == derive_seed(7, 0, sample_id)
        texts = LetterTokenizer()([f"clip {number}", f"clip {number} again", f"number {number}"])[0]
        assert any(torch.equal(ids, text) for text in texts)
    assert module.vocabulary == LetterTokenizer.vocabulary


def test_each_epoch_uses_each_sample_of_every_source_at_most_once(sources):
    module = ready(sources)
    loader = module.train_dataloader()
    assert len(loader) == 4 + 2
    epochs = [[(batch["source"], key) for batch in loader for key in batch["key"]] for _ in range(3)]
    assert all(len(epoch) == len(set(epoch)) == 24 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert module.ledger.seen == 72


def test_augmentations_differ_from_epoch_to_epoch(sources):
    loader = ready({"web": sources["web"]}, global_batch_size=18, train_captions="first").train_dataloader()
    first, second = (next(iter(loader)) for _ in range(2))
    clips = [dict(zip(batch["key"], batch["video"], strict=True)) for batch in (first, second)]
    assert sum(torch.equal(clips[0][key], clips[1][key]) for key in clips[0]) < 3


def test_workers_change_nothing(sources):
    alone, helped = (list(ready(sources, num_workers=number).train_dataloader()) for number in (0, 2))
    for first, second in zip(alone, helped, strict=True):
        same(first, second)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_same_global_batches(sources, world):
    whole = list(ready(sources).train_dataloader())
    parts = [list(ready(sources, share=(rank, world)).train_dataloader()) for rank in range(world)]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert {share["source"] for share in shares} == {batch["source"]}
        assert [key for share in shares for key in share["key"]] == batch["key"]
        for name in ("video", "seed", "sample_id", "input_ids"):
            assert torch.equal(torch.cat([share[name] for share in shares]), batch[name])


@pytest.mark.parametrize("stop", [1, 3, 6, 8, 12])
def test_resuming_gives_the_tail(sources, stop):
    whole, loader = [], ready(sources).train_dataloader()
    while len(whole) < 18:
        whole += list(loader)
    module = ready(sources)
    loader, seen = module.train_dataloader(), 0
    while seen < stop:
        for _ in loader:
            seen += 1
            if seen == stop:
                break
    state = json.loads(json.dumps(module.state_dict()))
    resumed = ready(sources, num_workers=1)
    resumed.load_state_dict(state)
    loader, tail = resumed.train_dataloader(), []
    while len(tail) < 18 - stop:
        tail += list(loader)
    for first, second in zip(whole[stop:], tail, strict=True):
        same(first, second)
    assert resumed.ledger.seen == 18 * 4


@pytest.mark.parametrize("changed", [{"seed": 8}, {"global_batch_size": 2}, {"shuffle_buffer": 9}, {"num_streams": 2}])
def test_resuming_with_another_plan_is_refused(sources, changed):
    module = ready(sources)
    next(iter(module.train_dataloader()))
    other = ready(sources, **changed)
    other.load_state_dict(module.state_dict())
    with pytest.raises(InputError, match="restore these to resume"):
        other.train_dataloader()


def test_evaluation_gives_every_clip_once_with_all_its_captions(sources):
    module = ready(val=sources, stage="validate")
    web, tv = module.val_dataloader()
    assert (len(web), len(tv)) == (5, 3)
    batches = list(web)
    assert batches[0].keys() == {*RetrievalBatch.__required_keys__, "video"}
    assert batches[0]["medium"] == "video"
    assert [index for batch in batches for index in batch["index"].tolist()] == list(range(18))
    batch = batches[1]
    assert batch["video"].shape == (4, 2, 3, 16, 16)
    assert batch["clip_of_caption"].tolist() == [4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7]
    assert batch["caption"][:3] == ["Clip 4!", "clip 4 again", "number 4"]
    assert torch.equal(batch["input_ids"][0], LetterTokenizer()(["clip 4"])[0][0])
    assert batch["valid"].shape == batch["input_ids"].shape == (12, 24)
    same(batch, list(web)[1])
    first = next(iter(ready(val=sources, stage="validate", eval_captions="first").val_dataloader()[0]))
    assert first["caption"] == [f"Clip {number}!" for number in range(4)]
    assert first["clip_of_caption"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_evaluate_each_clip_once_in_equally_many_steps(sources, world):
    parts = [
        list(
            ready(val={"tv": sources["tv"]}, stage="test", share=(rank, world), eval_batch_size=2).test_dataloader()[0]
        )
        for rank in range(world)
    ]
    assert len({len(part) for part in parts}) == 1
    indices = [index for part in parts for batch in part for index in batch["index"].tolist()]
    assert sorted(indices) == list(range(9))
    sizes = {batch["video"].shape[1:] for part in parts for batch in part}
    assert sizes == {(2, 3, 16, 16)}


def test_a_batch_without_any_clip_keeps_its_shapes(tmp_path):
    bad = {number: {"mp4": b"", "txt": "x"} for number in range(8)}
    module = ready({"web": write_clips(tmp_path, num=8, bad=bad)}, {"web": str(tmp_path)})
    for batch in module.train_dataloader():
        assert batch["video"].shape == (0, 2, 3, 16, 16)
        assert batch["input_ids"].shape == batch["valid"].shape == (0, 24)
        assert batch["seed"].shape == batch["sample_id"].shape == (0,)
        assert len(batch["skipped"]) == 4
    batch = next(iter(module.val_dataloader()[0]))
    assert batch["video"].shape == (0, 2, 3, 16, 16)
    assert batch["clip_of_caption"].shape == (0,)
    assert batch["clip_of_caption"].dtype == torch.int64


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """Twenty samples of which all kinds of bad ones make fourteen."""
    bad = {number + 3: members for number, (_, members) in enumerate(bad_samples())}
    return write_clips(tmp_path_factory.mktemp("spoiled"), num=20, max_samples=7, bad=bad)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_sample_is_used_or_named_with_its_reason(spoiled, num_workers):
    module = ready({"web": spoiled}, {"web": spoiled}, num_workers=num_workers)
    batches = list(module.train_dataloader())
    skipped = {entry.key: entry.reason for batch in batches for entry in batch["skipped"]}
    assert skipped == {f"clip{number + 3:02d}": reason for number, (reason, _) in enumerate(bad_samples())}
    keys = [key for batch in batches for key in batch["key"]]
    assert sorted([*keys, *skipped]) == [f"clip{number:02d}" for number in range(20)]
    assert all(len(batch["video"]) == len(batch["key"]) == 4 - len(batch["skipped"]) for batch in batches)
    assert module.ledger.seen == 20
    assert module.ledger.skipped == len(skipped) == 14
    (loader,) = module.val_dataloader()
    used = [index for batch in loader for index in batch["index"].tolist()]
    assert used == [0, 1, 2, 17, 18, 19]
    assert module.ledger.skipped == 28


@pytest.mark.parametrize("num_workers", [0, 1])
def test_beyond_the_budget_training_stops_with_one_line(spoiled, num_workers):
    module = ready({"web": spoiled}, budget=0.2, num_workers=num_workers)
    with pytest.raises(InputError, match=r"5 of \d+ samples .*web:clip.*raise budget") as error:
        list(module.train_dataloader())
    assert "\n" not in str(error.value)


def test_a_truncated_shard_costs_only_its_own_samples(tmp_path):
    folder = write_clips(tmp_path, num=10, max_samples=5)
    path = tmp_path / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    module = ready({"web": folder}, global_batch_size=5)
    batches = list(module.train_dataloader())
    lost = module.ledger.by_reason()["shard_truncated"]
    keys = [key for batch in batches for key in batch["key"]]
    assert len(keys) == len(set(keys)) == 10 - lost
    assert 1 <= lost <= 4
    assert {f"clip{number:02d}" for number in range(5)} <= set(keys)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_clips_of_unequal_size_are_a_mistake_of_the_configuration(tmp_path, num_workers):
    large = {"mp4": encode(num_frames=4, height=64, width=64), "txt": "large"}
    folder = write_clips(tmp_path, num=4, bad={1: large})
    module = ready({"web": folder}, train_transforms=[], num_workers=num_workers)
    with pytest.raises(InputError, match="end the transforms with a Resize") as error:
        next(iter(module.train_dataloader()))
    assert "\n" not in str(error.value)


def test_user_mistakes(sources, tmp_path):
    with pytest.raises(InputError, match=r"global_batch_size=32.*holds only 9 samples"):
        ready(sources, global_batch_size=32).train_dataloader()
    with pytest.raises(InputError, match="global_batch_size=4: cannot be shared by 3"):
        ready(sources, share=(0, 3)).train_dataloader()
    with pytest.raises(InputError, match=r"datamodule\.train is empty"):
        ready({})
    with pytest.raises(InputError, match=r"holds no shards.*ivt2\.cli\.shards"):
        ready({"web": str(tmp_path)})
    with pytest.raises(InputError, match="num_frames=0"):
        datamodule(sources, num_frames=0)
    with pytest.raises(InputError, match="weights"):
        datamodule(sources, weights={"web": 1})


def test_weights_by_name(sources):
    loader = ready(sources, weights={"tv": 1, "web": 2}).train_dataloader()
    names = [batch["source"] for batch in loader]
    assert sorted(names) == ["tv"] * 2 + ["web"] * 4


def test_the_hash_names_the_data_of_the_stage(sources):
    module = ready(sources, {"tv": sources["tv"]})
    whole = module.manifest_hash
    module.setup("test")
    assert whole != module.manifest_hash == ready(val={"other": sources["tv"]}, stage="test").manifest_hash


def test_the_loader_leaves_the_global_generator_alone(sources):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(ready(sources, num_workers=1).train_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


def test_any_sampling_rule_can_be_bound(sources):
    module = ready(
        sources,
        sources,
        train_sampling=partial(dense_random, stride=2),
        eval_sampling=partial(uniform, num_views=1),
        train_transforms=[Resize(16)],
    )
    assert next(iter(module.train_dataloader()))["video"].shape[1] == 2
    assert next(iter(module.val_dataloader()[0]))["video"].shape[1] == 2

"""Exact: batches of clips without text depend on the step alone; labelled sets give each clip once, with its class."""

import json
from functools import partial
from itertools import chain, islice, repeat

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ivt2.batch import ClipBatch
from ivt2.cli.door import CONF
from ivt2.data.decode import decode_video
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import Ledger
from ivt2.data.packing import pack
from ivt2.data.preparation import Preparation
from ivt2.data.sampling import middle, segment_starts
from ivt2.data.shards import ShardWriter
from ivt2.data.synthetic_datasets import describe_dataset, write_dataset
from ivt2.data.transforms import HorizontalFlip, MultiScaleCrop, Resize
from ivt2.datamodules.clips import ClipDataModule
from ivt2.errors import InputError
from ivt2.ops.random import derive_seed
from tests.data.clips import tone, wav
from tests.datamodules.clip_sets import video
from tests.datamodules.seen import Seen, checkpoints, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*bottleneck.*", "ignore:.*LeafSpec.*")

LENGTHS = (6, 7, 8, 9)
"""Frames of the clips, by turns."""


def write(folder, records, prefix="clip"):
    """Write a clip for each record: its json member, or None for none; bytes are whole members."""
    with ShardWriter(folder, max_samples=5, max_bytes=1 << 30) as writer:
        for number, facts in enumerate(records):
            said = {} if facts is None else {"json": facts}
            writer.write(f"{prefix}{number:02d}", {"mp4": video(LENGTHS[number % 4]), **said})
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sets to train on, of which one has classes; three to probe with."""
    root = tmp_path_factory.mktemp("sets")
    return {
        "web": write(root / "web", [None] * 14),
        "mash": write(
            root / "mash",
            [{"class_index": 3 * number, "source": ("ssv2", "k710")[number % 2]} for number in range(13)],
            "mash",
        ),
        "fit": write(root / "fit", [{"class_index": number % 3} for number in range(7)], "fit"),
        "held": write(root / "held", [{"label": ("run", "jump")[number % 2]} for number in range(5)], "held"),
        "bad": write(root / "bad", [None, {"class_index": "1"}, {"class_index": 4}, b"{", {"class_index": -1}], "bad"),
    }


def datamodule(train=None, probe=None, **changed):
    arguments = {
        "train": train or {},
        "probe": probe or {},
        "num_frames": 2,
        "train_transforms": [MultiScaleCrop(16), HorizontalFlip()],
        "eval_transforms": [Resize(16)],
        "global_batch_size": 4,
        "eval_batch_size": 2,
        "seed": 7,
        "budget": 100,
        "isolate": False,
    }
    return ClipDataModule(**{**arguments, **changed})


def ready(*args, stage="fit", share=(0, 1), **options):
    """A datamodule whose rank and world are given instead of taken from a trainer."""
    module = datamodule(*args, **options)
    module._rank_and_world = lambda: share
    module.setup(stage)
    return module


def sides(length, chosen, *, mirrored):
    """Frames of a clip as the transforms ``Resize(16)`` and then a flip for certain give them."""
    frames = Resize(16)(decode_video(video(length), lambda *_: chosen).frames, np.random.default_rng(0))
    return frames.flip(-1) if mirrored else frames


def test_a_training_batch_is_what_the_contract_says(folders):
    module = ready({"web": folders["web"], "mash": folders["mash"]})
    assert module.media == {"train.web": "video", "train.mash": "video"}
    batches = list(module.train_dataloader())
    assert {batch["source"] for batch in batches} == {"web", "mash"}
    for batch in batches:
        assert batch.keys() == ClipBatch.__required_keys__
        assert batch["video"].shape == (4, 2, 3, 16, 16)
        assert batch["video"].dtype == torch.uint8
        offset = 0 if batch["source"] == "web" else 14
        numbers = [sample_id - offset for sample_id in batch["sample_id"].tolist()]
        assert batch["key"] == [f"{'clip' if offset == 0 else 'mash'}{number:02d}" for number in numbers]
        assert batch["seed"].tolist() == [derive_seed(7, 0, offset + number) for number in numbers]
        assert batch["label"].tolist() == ([-1] * 4 if offset == 0 else [3 * number for number in numbers])
        assert batch["label"].dtype == batch["seed"].dtype == batch["sample_id"].dtype == torch.int64
        assert batch["skipped"] == []
    keys = [key for batch in batches for key in batch["key"]]
    assert len(keys) == len(set(keys)) == 24 == module.ledger.seen


def test_a_source_says_whether_and_which_of_its_clips_are_mirrored(folders):
    sources = {
        "plain": folders["mash"],
        "never": {"shards": folders["mash"], "flip": False},
        "some": {"shards": folders["mash"], "flip_except": ["ssv2"]},
    }
    options = {"train_transforms": [Resize(16), HorizontalFlip(1.0)], "train_sampling": middle}
    for batch in ready(sources, global_batch_size=13, **options).train_dataloader():
        for key, clip in zip(batch["key"], batch["video"], strict=True):
            number = int(key[-2:])
            mirrored = {"plain": True, "never": False, "some": number % 2 == 1}[batch["source"]]
            length = LENGTHS[number % 4]
            assert torch.equal(clip, sides(length, middle(length, 2), mirrored=mirrored)), (batch["source"], key)


def test_a_source_may_be_trimmed_or_not_whatever_the_others_do(tmp_path):
    folder = write(tmp_path, [{"start_s": 0.08, "end_s": 0.16}] * 4)
    options = {"train_transforms": [Resize(16)], "train_sampling": middle}
    for everywhere, here, chosen in ((False, True, [2, 3]), (True, None, [2, 3]), (True, False, None)):
        module = ready({"a": {"shards": folder, "trim": here}}, trim=everywhere, **options)
        (batch,) = module.train_dataloader()
        for key, clip in zip(batch["key"], batch["video"], strict=True):
            length = LENGTHS[int(key[-2:])]
            assert torch.equal(clip, sides(length, chosen or middle(length, 2), mirrored=False))


def test_frames_are_drawn_by_the_rule_that_is_bound(folders):
    drawn = []

    def rule(length, num_frames, generator):
        drawn.append(segment_starts(length, num_frames, 1, generator))
        return drawn[-1]

    options = {"train_transforms": [Resize(16)], "num_frames": 4, "global_batch_size": 7}
    ours, theirs = (
        next(iter(ready({"fit": folders["fit"]}, train_sampling=each, **options).train_dataloader()))
        for each in (partial(segment_starts, span=1), rule)
    )
    assert torch.equal(ours["video"], theirs["video"])
    for key, clip, frames in zip(theirs["key"], theirs["video"], drawn, strict=True):
        size = LENGTHS[int(key[-2:]) % 4] // 4
        assert all(i * size <= frame < (i + 1) * size for i, frame in enumerate(frames))
        assert torch.equal(clip, sides(LENGTHS[int(key[-2:]) % 4], frames, mirrored=False))


def snapshot(batch):
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def joined(parts):
    """The global batch of the parts of all ranks."""
    (source,) = {part["source"] for part in parts}
    return {name: source if name == "source" else list(chain(*(part[name] for part in parts))) for name in parts[0]}


def some_steps(sources, state, *, world, num_workers, num):
    """The next global batches on so many ranks, and the state after them."""
    parts = []
    for rank in range(world):
        module = ready(sources, share=(rank, world), num_workers=num_workers, global_batch_size=12)
        if state is not None:
            module.load_state_dict(state)
        batches = chain.from_iterable(repeat(module.train_dataloader()))
        parts.append([snapshot(batch) for batch in islice(batches, num)])
    return [joined(step) for step in zip(*parts, strict=True)], json.loads(json.dumps(module.state_dict()))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_workers_may_change_at_any_resume(folders, num_workers):
    sources = {"web": folders["web"], "mash": {"shards": folders["mash"], "flip_except": ["ssv2"]}}
    whole, _ = some_steps(sources, None, world=1, num_workers=0, num=6)
    assert {step["source"] for step in whole} == {"web", "mash"}
    assert whole[0]["video"] != whole[2]["video"]
    state, steps = None, []
    for world, num in ((1, 1), (2, 2), (4, 2), (3, 1)):
        found, state = some_steps(sources, state, world=world, num_workers=num_workers, num=num)
        steps += found
    assert steps == whole


def test_resuming_asks_for_the_same_training_sets_whatever_is_probed_and_mirrored(folders):
    module = ready({"mash": folders["mash"]})
    next(iter(module.train_dataloader()))
    state = module.state_dict()
    probe = {"motion": {"train": folders["fit"], "test": folders["fit"]}}
    other = ready({"mash": {"shards": folders["mash"], "flip": False}}, probe)
    other.load_state_dict(state)
    assert other.train_dataloader().position == 1
    changed = ready({"mash": folders["fit"]})
    changed.load_state_dict(state)
    with pytest.raises(InputError, match="restore these to resume"):
        changed.train_dataloader()


class Probing(pl.Callback):
    """Goes through the labelled sets after each step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for loaders in trainer.datamodule.probe_dataloaders().values():
            for loader in loaders:
                assert len(list(loader)) == len(loader)


def test_a_run_that_is_resumed_or_probed_sees_what_another_sees(folders, tmp_path):
    train = {"web": folders["web"], "mash": folders["mash"]}
    probe = {"motion": {"train": folders["fit"], "test": {"shards": folders["held"], "classes": ["run", "jump"]}}}
    saver = checkpoints(tmp_path / "steps", every_n_train_steps=1)
    runs = []
    for callbacks, path in (((saver,), None), ((), "step=1.ckpt"), ((Probing(),), "step=8.ckpt")):
        module, data = Seen(), datamodule(train, probe)
        runner = trainer(tmp_path, *callbacks, max_epochs=2)
        runner.fit(module, data, ckpt_path=path and tmp_path / "steps" / path, weights_only=True)
        runs.append(module.train_batches)
    assert len(runs[0]) == 12
    assert runs[0][1:] == runs[1]
    assert runs[0][8:] == runs[2]
    assert data.ledger.seen == 12 * 4 + 4 * (7 + 5)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_labelled_set_gives_each_clip_once_with_its_class(folders, world):
    probe = {
        "motion": {"train": folders["fit"], "test": {"shards": folders["held"], "classes": ["run", "jump"]}},
        "again": {"train": folders["fit"], "test": folders["fit"]},
    }
    options = {"eval_transforms": [Resize(16), HorizontalFlip(1.0)]}
    parts = [ready(None, probe, stage="test", share=(rank, world), **options) for rank in range(world)]
    loaders = [part.probe_dataloaders() for part in parts]
    assert all(list(each) == ["motion", "again"] for each in loaders)
    for place, (name, num, classes) in enumerate((("fit", 7, 3), ("held", 5, 2))):
        batches = [list(each["motion"][place]) for each in loaders]
        assert len({len(part) for part in batches}) == 1
        found = {}
        for batch in (batch for part in batches for batch in part):
            assert batch.keys() == ClipBatch.__required_keys__
            assert batch["source"] == ("motion.train", "motion.test")[place]
            assert batch["video"].shape == (len(batch["key"]), 2, 3, 16, 16)
            said = zip(batch["label"].tolist(), batch["key"], strict=True)
            found |= dict(zip(batch["sample_id"].tolist(), said, strict=True))
            for index, clip in zip(batch["sample_id"].tolist(), batch["video"], strict=True):
                length = LENGTHS[index % 4]
                assert torch.equal(clip, sides(length, middle(length, 2), mirrored=True))
        assert found == {number: (number % classes, f"{name}{number:02d}") for number in range(num)}
        assert sum(len(batch["key"]) for part in batches for batch in part) == num


def test_labels_that_cannot_be_used_cost_their_samples_and_absent_ones_only_a_probe(folders):
    probe = {"bad": {"train": folders["bad"], "test": folders["bad"]}}
    module = ready({"bad": folders["bad"]}, probe, global_batch_size=5)
    (batch,) = module.train_dataloader()
    assert dict(zip(batch["key"], batch["label"].tolist(), strict=True)) == {"bad00": -1, "bad02": 4}
    reasons = {"bad01": "label_invalid", "bad03": "json_invalid", "bad04": "label_invalid"}
    assert {skipped.key: skipped.reason for skipped in batch["skipped"]} == reasons
    first, second = (list(loader) for loader in module.probe_dataloaders()["bad"])
    found = {skipped.key: skipped.reason for batch in first for skipped in batch["skipped"]}
    assert found == {**reasons, "bad00": "label_missing"}
    assert [batch["label"].tolist() for batch in second] == [[], [4], []]
    assert [tuple(batch["video"].shape) for batch in second] == [
        (0, 2, 3, 16, 16),
        (1, 2, 3, 16, 16),
        (0, 2, 3, 16, 16),
    ]
    assert module.ledger.seen == 15
    assert module.ledger.counts["bad.test", "label_missing"] == 1
    assert module.ledger.skipped == 3 + 4 + 4


def test_the_hash_names_all_data_of_the_stage_and_probes_need_no_training_set(folders):
    probe = {"motion": {"train": folders["fit"], "test": folders["held"]}}
    hashes = {
        ready({"web": folders["web"]}).manifest_hash,
        ready({"web": folders["web"]}, probe).manifest_hash,
        ready(None, probe, stage="validate").manifest_hash,
    }
    assert len(hashes) == 3
    assert ready(None, probe, stage="test").ledger.num_samples == 12
    assert ready({"web": folders["web"]}).probe_dataloaders() == {}


def test_k_mash_goes_from_its_list_to_batches(tmp_path):
    """Intervals of two scenes are one source of the list, whole clips of one scene the other."""
    dataset = describe_dataset("k_mash", split="train", num=6, seed=3)
    write_dataset(dataset, tmp_path)
    cfg = OmegaConf.load(CONF / "source" / "k_mash.yaml")
    source = instantiate(OmegaConf.merge(cfg, {"annotations": str(tmp_path / "train.csv")}), _convert_="all")
    options = {"preparation": Preparation(), "ledger": Ledger(0), "num_processes": 1}
    pack(source, tmp_path / "train", tmp_path / "shards", **options)
    mash = {"shards": str(tmp_path / "shards"), "trim": True, "flip_except": ["hacs"]}
    transforms = {"train_transforms": [Resize(16), HorizontalFlip(1.0)], "train_sampling": middle}
    (batch,) = ready({"mash": mash}, global_batch_size=6, **transforms).train_dataloader()
    found = {}
    for sample_id, label, clip in zip(batch["sample_id"].tolist(), batch["label"], batch["video"], strict=True):
        found[sample_id] = int(label), clip
    lines = [line.split() for line in (tmp_path / "train.csv").read_text().splitlines()]
    assert {line[0] for line in lines} == {"hacs", "k710"}
    for number, (name, path, _, start_s, end_s, label) in enumerate(lines):
        part = {"start_s": float(start_s), "end_s": float(end_s)} if name == "hacs" else {}
        data = (tmp_path / "train" / path).read_bytes()
        frames = decode_video(data, lambda length, _: middle(length, 2), **part).frames
        expected = Resize(16)(frames, np.random.default_rng(0))
        assert found[number][0] == int(label)
        assert torch.equal(found[number][1], expected if name == "hacs" else expected.flip(-1))


@pytest.mark.dist
def test_decoding_in_a_process_apart_changes_nothing_and_has_a_time_limit(folders, monkeypatch):
    def batch(isolate):
        module = ready({"mash": folders["mash"]}, isolate=isolate, decoder_timeout_s=59.0)
        return next(iter(module.train_dataloader()))

    def wait_in_vain(process, channel, deadline):
        limits.append(process.timeout_s)
        raise TimeoutError

    limits = []
    assert torch.equal(batch(isolate=False)["video"], batch(isolate=True)["video"])
    monkeypatch.setattr(DecoderProcess, "_receive", wait_in_vain)
    late = batch(isolate=True)
    assert {skipped.reason for skipped in late["skipped"]} == {"decoder_timeout"}
    assert late["video"].shape == (0, 2, 3, 16, 16)
    assert set(limits) == {59.0}


MISTAKES = [
    ({"train": {"web": {"shards": "x", "flips": True}}}, r"datamodule\.train\.web\.flips: is no option of a source"),
    ({"train": {"web": {"shards": "x", "captions": "first"}}}, r"captions: is no option.*flip_except, classes"),
    ({"train": {"web": {"flip": False}}}, r"datamodule\.train\.web: names no shards"),
    ({"train": {"web": None}}, r"datamodule\.train\.web=None: give a shard folder"),
    ({"train": {"web": {"shards": "x", "flip": "ssv2"}}}, "flip=ssv2: give true or false"),
    ({"train": {"web": {"shards": "x", "trim": 3}}}, "trim=3, flip=True: give true or false"),
    ({"train": {"web": {"shards": "x", "flip_except": "ssv2"}}}, "flip_except=ssv2: give a list"),
    ({"train": {"web": {"shards": "x", "flip_except": ["a"], "flip": False}}}, "says nothing where flip=false"),
    ({"train": {"web": {"shards": "x", "classes": ["a", "a"]}}}, "classes=.* list of different names"),
    ({"train": {"web": {"shards": "x", "medium": "audio"}}}, "medium=audio: is for datamodule=media_text"),
    ({"probe": {"motion": "x"}}, r"datamodule\.probe\.motion=x: name the shards.*probe\.motion\.test=<folder>"),
    ({"probe": {"motion": {"train": "x"}}}, r"datamodule\.probe\.motion=.*probe\.motion\.test=<folder>"),
    ({"probe": {"motion": {"train": "x", "test": {}}}}, r"datamodule\.probe\.motion\.test: names no shards"),
    ({"num_frames": 0}, "num_frames=0: must be at least 1"),
    ({"weights": {"web": 1}}, "weights of"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes_are_named_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        datamodule(**options)
    assert "\n" not in str(error.value)


def test_sets_without_pictures_and_runs_without_sets_are_refused(tmp_path):
    with ShardWriter(tmp_path / "sounds", max_samples=5, max_bytes=1 << 30) as writer:
        writer.write("a", {"wav": wav(tone(0.1))})
    with pytest.raises(InputError, match=r"datamodule\.train\.web: its first samples are sounds"):
        ready({"web": str(tmp_path / "sounds")})
    with pytest.raises(InputError, match=r"datamodule\.train is empty"):
        ready({})

"""Exact: what batches hold of each medium, and that their content depends on the step alone in mixtures of all."""

import hashlib
import json
import zlib
from itertools import chain, count, islice, repeat

import fsspec
import pytest
import torch

from ivt2.batch import MediaTextBatch, RetrievalBatch, TextTokens
from ivt2.data.annotations import Annotation
from ivt2.data.audio import decode_audio
from ivt2.data.mixing import BATCHES_AHEAD
from ivt2.data.preparation import Preparation
from ivt2.data.shards import ShardSet
from ivt2.data.sound import ten_seconds
from ivt2.data.transcoding import VideoPreset
from ivt2.errors import InputError
from tests.datamodules.clip_sets import LetterTokenizer, datamodule
from tests.datamodules.media_sets import facts, hiss, sounding, write_media

NUMBERS = {"image": 24, "video": 14, "audio": 12, "audio_video": 13}
HOLDS = {"image": {"video"}, "video": {"video"}, "audio": {"audio"}, "audio_video": {"video", "audio"}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A source of each medium, under its name."""
    root = tmp_path_factory.mktemp("media")
    folders = {medium: write_media(root / medium, medium, num) for medium, num in NUMBERS.items()}
    return {**folders, "audio_video": {"shards": folders["audio_video"], "medium": "audio_video"}}


def ready(*args, stage="fit", share=(0, 1), **options):
    """A datamodule whose rank and world are given instead of taken from a trainer."""
    module = datamodule(*args, **options)
    module._rank_and_world = lambda: share
    module.setup(stage)
    return module


@pytest.mark.parametrize("medium", NUMBERS)
def test_a_training_batch_holds_what_its_medium_has(sources, medium):
    module = ready({"web": sources[medium]})
    batch = next(iter(module.train_dataloader()))
    assert batch.keys() == {*MediaTextBatch.__required_keys__, *HOLDS[medium]}
    assert batch["medium"] == medium
    assert module.media == {"train.web": medium}
    for name in HOLDS[medium]:
        num_frames = 1 if medium == "image" else 2
        assert batch[name].shape == ((4, num_frames, 3, 16, 16) if name == "video" else (4, 998, 64))
    assert batch["sample_id"].shape == (4,)
    if medium == "audio":
        at = batch["key"].index(next(key for key in batch["key"] if key != "audio01"))
        sound = hiss(int(batch["key"][at][-2:]))
        assert torch.equal(batch["audio"][at], ten_seconds(decode_audio(sound), of_video=False))


@pytest.mark.parametrize("medium", NUMBERS)
@pytest.mark.parametrize("world", [1, 2])
def test_an_evaluation_batch_holds_what_its_medium_has_and_each_sample_comes_once(sources, medium, world):
    parts = [
        list(ready(val={"web": sources[medium]}, stage="test", share=(rank, world)).test_dataloader()[0])
        for rank in range(world)
    ]
    for batch in (batch for part in parts for batch in part):
        assert batch.keys() == {*RetrievalBatch.__required_keys__, *HOLDS[medium]}
        assert batch["medium"] == medium
        assert {len(batch[name]) for name in HOLDS[medium]} == {len(batch["key"])}
    indices = [index for part in parts for batch in part for index in batch["index"].tolist()]
    assert sorted(indices) == list(range(NUMBERS[medium]))


@pytest.mark.parametrize("medium", NUMBERS)
def test_a_batch_without_any_clip_keeps_its_shapes(tmp_path, medium):
    bad = {number: {"json": facts(number)} for number in range(4)}
    source = {"shards": write_media(tmp_path, medium, 4, bad), "medium": medium, "caption_kinds": ["video"]}
    module = ready({"web": source}, {"web": {**source, "caption_kinds": []}})
    batch, evaluated = next(iter(module.train_dataloader())), next(iter(module.val_dataloader()[0]))
    for name in HOLDS[medium]:
        num_frames = 1 if medium == "image" else 2
        shape = (0, num_frames, 3, 16, 16) if name == "video" else (0, 998, 64)
        assert batch[name].shape == evaluated[name].shape == shape
        assert batch[name].dtype == evaluated[name].dtype == (torch.uint8 if name == "video" else torch.float32)
    assert batch["texts"]["video"].input_ids.shape == batch["input_ids"].shape == (0, 24)
    assert len(batch["skipped"]) == 4


def test_sound_is_cropped_at_random_for_training_and_in_the_middle_for_evaluation(sources):
    module = ready({"web": sources["audio"]}, {"web": sources["audio"]}, global_batch_size=12, eval_batch_size=12)
    loader = module.train_dataloader()
    epochs = [next(iter(loader)) for _ in range(2)]
    crops = [batch["audio"][batch["key"].index("audio01")] for batch in epochs]
    (loader,) = module.val_dataloader()
    evaluated = [next(iter(loader))["audio"][1] for _ in range(2)]
    whole = decode_audio(hiss(1, 10.1))
    assert not torch.equal(*crops)
    assert torch.equal(*evaluated)
    assert torch.equal(evaluated[0], ten_seconds(whole, of_video=False))


@pytest.mark.parametrize("missing", ["skip", "pad"])
def test_a_video_without_sound_is_skipped_or_padded_as_its_source_says(tmp_path, missing):
    silent = {2: {"mkv": sounding(4, with_sound=False), "json": facts(2)}}
    folder = write_media(tmp_path, "audio_video", 4, silent)
    module = ready({"web": {"shards": folder, "medium": "audio_video", "missing_audio": missing}})
    batch = next(iter(module.train_dataloader()))
    reasons = {skipped.key: skipped.reason for skipped in batch["skipped"]}
    assert reasons == ({"audio_video02": "audio_missing"} if missing == "skip" else {})
    assert module.ledger.seen == 4
    assert module.ledger.padded_sounds == (1 if missing == "pad" else 0)
    if missing == "pad":
        silence = [key for key, rows in zip(batch["key"], batch["audio"], strict=True) if not rows.any()]
        assert silence == ["audio_video02"]


def test_the_sound_of_a_clip_may_be_a_member_of_its_own(tmp_path):
    both = {number: {"mkv": sounding(4), "wav": hiss(number), "json": facts(number)} for number in range(4)}
    folder = write_media(tmp_path, "audio_video", 4, both)
    options = {"shards": folder, "medium": "audio_video", "read_audio_from": "audio"}
    batch = next(iter(ready({"web": options}).train_dataloader()))
    for key, rows in zip(batch["key"], batch["audio"], strict=True):
        assert torch.equal(rows, ten_seconds(decode_audio(hiss(int(key[-1]))), of_video=False))


def test_prepared_videos_sound_as_they_did_before(tmp_path):
    raw = {number: sounding(4) for number in range(4)}
    prepared = {}
    for number, data in raw.items():
        members, _ = Preparation(audio=True, video=VideoPreset(gop=4))("mkv", data, Annotation(file="a.mkv"))
        assert set(members) == {"mp4", "flac"}
        prepared[number] = {**members, "json": facts(number)}
    batches = []
    for name, samples in (("raw", {n: {"mkv": data, "json": facts(n)} for n, data in raw.items()}), ("made", prepared)):
        folder = write_media(tmp_path / name, "audio_video", 4, samples)
        module = ready({"web": {"shards": folder, "medium": "audio_video"}})
        batches.append(next(iter(module.train_dataloader())))
    assert batches[0]["key"] == batches[1]["key"]
    assert len(batches[1]["key"]) == 4
    assert torch.allclose(batches[0]["audio"], batches[1]["audio"], atol=0.1)  # 16 bits instead of AAC's floats


def test_captions_by_kind_stand_beside_the_one_that_is_drawn(sources):
    options = {**sources["audio_video"], "caption_kinds": ["audio", "fused"]}
    plain, asked = (
        next(iter(ready({"web": source}).train_dataloader())) for source in (sources["audio_video"], options)
    )
    tokens = LetterTokenizer()
    assert list(asked["texts"]) == ["audio", "fused"]
    assert all(isinstance(value, TextTokens) for value in asked["texts"].values())
    numbers = [int(key[-2:]) for key in asked["key"]]
    assert torch.equal(asked["texts"]["fused"].input_ids, tokens([f"all {number}" for number in numbers])[0])
    assert torch.equal(asked["texts"]["fused"].valid, tokens([f"all {number}" for number in numbers])[1])
    for number, row in zip(numbers, asked["texts"]["audio"].input_ids, strict=True):
        assert any(torch.equal(row, each) for each in tokens([f"heard {number}", f"noise {number}"])[0])
    for name in ("video", "audio", "input_ids", "seed"):
        assert torch.equal(plain[name], asked[name]), "kinds change nothing else"


def test_captions_of_kinds_are_drawn_anew_each_epoch_unless_the_first_is_asked_for(sources):
    for policy, drawn in (("random", {0, 1}), ("first", {0})):
        options = {**sources["audio_video"], "caption_kinds": ["audio"], "captions": policy}
        batches = list(ready({"web": options}, global_batch_size=12).train_dataloader())
        found = set()
        for batch in batches:
            for key, row in zip(batch["key"], batch["texts"]["audio"].input_ids, strict=True):
                both = LetterTokenizer()([f"heard {int(key[-2:])}", f"noise {int(key[-2:])}"])[0]
                found.add(next(place for place in (0, 1) if torch.equal(row, both[place])))
        assert found == drawn


def test_options_of_a_source_replace_those_of_the_datamodule(sources):
    folder = sources["video"]
    module = ready(val={"all": folder, "first": {"shards": folder, "captions": "first"}}, stage="validate")
    counts = [len(next(iter(loader))["caption"]) for loader in module.val_dataloader()]
    assert counts == [8, 4]
    short = {"shards": folder, "min_words": 3}
    batch = next(iter(ready({"web": short}).train_dataloader()))
    assert {skipped.reason for skipped in batch["skipped"]} == {"text_too_short"}


SIZES = {"image": 24, "video": 12, "audio": 12, "audio_video": 12}


def test_each_medium_has_a_batch_size_of_its_own(sources):
    module = ready(sources, global_batch_size={"image": 8, "video": 7, "audio": 3, "audio_video": 13})
    loader = module.train_dataloader()
    seen = [(batch["medium"], len(batch["key"])) for batch in loader]
    assert sorted(seen) == sorted([("image", 8)] * 3 + [("video", 7)] * 2 + [("audio", 3)] * 4 + [("audio_video", 13)])
    assert {batch["source"] for batch in loader} == set(sources)


def snapshot(batch):
    """Samples of a batch and a checksum of each part of it."""
    tensors = {name: batch[name] for name in ("video", "audio", "input_ids", "seed") if name in batch}
    tensors |= {f"texts.{kind}": each.input_ids for kind, each in batch.get("texts", {}).items()}
    content = {name: [zlib.crc32(row.numpy().tobytes()) for row in each] for name, each in tensors.items()}
    return batch["source"], batch["sample_id"].tolist(), content


def joined(parts):
    """The global batch of the parts of all ranks."""
    (source,) = {part[0] for part in parts}
    content = {name: [crc for part in parts for crc in part[2][name]] for name in parts[0][2]}
    return source, [sample for part in parts for sample in part[1]], content


@pytest.mark.parametrize(("kind", "captions", "expected"), [
    (None, "all", ["all {}", "seen {}"]), ("audio", "all", ["heard {}", "noise {}"]), ("audio", "first", ["heard {}"]),
])  # fmt: skip
def test_evaluation_ranks_captions_of_one_kind(sources, kind, captions, expected):
    source = {"shards": sources["video"], "caption_kind": kind, "captions": captions}
    module = ready(val={"web": source}, stage="validate", eval_batch_size=3)
    batch = next(iter(module.val_dataloader()[0]))
    assert batch["caption"] == [text.format(number) for number in range(3) for text in expected]
    ids, _ = module.tokenizer(batch["caption"])
    assert torch.equal(batch["input_ids"], ids)
    assert batch["clip_of_caption"].tolist() == [number for number in range(3) for _ in expected]


def lacking(number):
    """A sample whose captions are of no kind."""
    return {"mkv": sounding(4), "json": {"caption": f"all {number}"}}


def test_a_kind_that_no_sample_has_is_refused_at_the_start(tmp_path):
    folder = write_media(tmp_path / "some", "video", 5, {0: lacking(0)})
    module = ready({"web": {"shards": folder, "caption_kinds": ["audio"]}}, global_batch_size=5)
    skipped = next(iter(module.train_dataloader()))["skipped"]
    assert [(each.key, each.reason) for each in skipped] == [("video00", "caption_kind_missing")]
    with pytest.raises(
        InputError, match=r"datamodule\.train\.web: its first 5 .* kind speech \(found: audio, fused, video\)"
    ):
        ready({"web": {"shards": folder, "caption_kinds": ["audio", "speech"]}})
    none = write_media(tmp_path / "none", "video", 3, {number: lacking(number) for number in range(3)})
    with pytest.raises(InputError, match=r"datamodule\.val\.web: its first 3 .* kind fused \(found: none at all\)"):
        ready(val={"web": {"shards": none, "caption_kind": "fused"}}, stage="validate")
    broken = write_media(tmp_path / "broken", "video", 2, {number: {"mkv": b"", "json": b"{"} for number in range(2)})
    ready(val={"web": {"shards": broken, "caption_kind": "fused"}}, stage="validate")


def some_steps(sources, state, *, world, num_workers, num):
    """The next global batches on so many ranks, and the state after them."""
    parts = []
    for rank in range(world):
        module = ready(sources, share=(rank, world), num_workers=num_workers, global_batch_size=SIZES)
        if state is not None:
            module.load_state_dict(state)
        batches = chain.from_iterable(repeat(module.train_dataloader()))
        parts.append([snapshot(batch) for batch in islice(batches, num)])
    return [joined(step) for step in zip(*parts, strict=True)], json.loads(json.dumps(module.state_dict()))


def test_ranks_and_workers_may_change_at_any_resume_of_a_mixture_of_all_media(sources):
    sources = {**sources, "audio_video": {**sources["audio_video"], "caption_kinds": ["audio"]}}
    whole, _ = some_steps(sources, None, world=1, num_workers=0, num=7)
    assert {source for source, _, _ in whole[:4]} == set(sources)
    state, steps = None, []
    for world, num_workers, num in ((1, 0, 1), (2, 3, 2), (4, 1, 2), (3, 2, 2)):
        found, state = some_steps(sources, state, world=world, num_workers=num_workers, num=num)
        steps += found
    assert steps == whole


def test_a_plan_without_sizes_by_medium_is_the_one_that_older_checkpoints_name(sources):
    folders = {name: sources[name] for name in ("image", "video")}
    hashes = [ShardSet.open(folder).manifest_hash for folder in folders.values()]
    named = hashlib.sha256(json.dumps([*hashes, 7, 4, 64, 4096, None]).encode()).hexdigest()
    for size in (4, {"image": 4, "video": 4}):
        for given in (folders, {name: {"shards": folder, "min_words": 1} for name, folder in folders.items()}):
            module = ready(given, global_batch_size=size)
            module.load_state_dict({"loader": {"position": 1, "plan": named}, "ledger": module.ledger.state_dict()})
            assert module.train_dataloader().position == 1
    other = ready(folders, global_batch_size={"image": 4, "video": 2})
    other.load_state_dict({"loader": {"position": 1, "plan": named}, "ledger": module.ledger.state_dict()})
    with pytest.raises(InputError, match="restore these to resume"):
        other.train_dataloader()


MISTAKES = [
    ({"shards": "x", "medum": "audio"}, r"datamodule\.train\.web\.medum: is no option of a source; it takes shards, m"),
    ({"medium": "audio"}, r"datamodule\.train\.web: names no shards; add train\.web\.shards="),
    ({"shards": "x", "medium": "sound"}, "medium=sound: choose one of image, video, audio, audio_video"),
    ({"shards": None}, "shards=None: name a folder"),
    ({"shards": "x", "captions": "all"}, "captions=all is not for train; use random or first"),
    ({"shards": "x", "missing_audio": "pad"}, "for sources with sound: add medium=audio"),
    ({"shards": "x", "medium": "audio_video", "missing_audio": None}, "missing_audio=None: choose one of skip, pad"),
    ({"shards": "x", "medium": "audio", "missing_audio": "pad"}, "leave it at skip"),
    ({"shards": "x", "read_audio_from": "video", "medium": "video"}, "for sources with sound"),
    ({"shards": "x", "min_words": -1}, "min_words=-1: give a number of words"),
    ({"shards": "x", "min_words": True}, "min_words=True"),
    ({"shards": "x", "caption_kinds": "audio"}, "caption_kinds=audio: give a list"),
    ({"shards": "x", "caption_kinds": ["audio", "audio"]}, "list of different kinds"),
    ({"shards": "x", "caption_kinds": None}, "caption_kinds=None"),
    ({"shards": "x", "caption_kind": "audio"}, r"train\.web: caption_kind is for evaluation"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes_in_the_options_of_a_source_are_named(options, message):
    with pytest.raises(InputError, match=message):
        datamodule({"web": options})


def test_mistakes_of_evaluation_sets_and_batch_sizes_are_named(sources):
    for options, message in (
        ({"captions": "random"}, "use all or first"),
        ({"caption_kinds": ["a"]}, "give caption_kind"),
        ({"caption_kind": ["a"]}, "name one kind"),
        ({"caption_kind": ""}, "name one kind"),
    ):
        with pytest.raises(InputError, match=message):
            datamodule(val={"web": {"shards": "x", **options}})
    with pytest.raises(InputError, match=r"global_batch_size\.sound: is no medium; give a size for image, video"):
        datamodule({"web": "x"}, global_batch_size={"sound": 3})
    with pytest.raises(InputError, match=r"global_batch_size\.audio=0: must be at least 1"):
        datamodule({"web": "x"}, global_batch_size={"audio": 0})
    with pytest.raises(
        InputError, match=r"says nothing of image, which train\.web holds; add global_batch_size\.image"
    ):
        ready({"web": sources["image"]}, global_batch_size={"video": 4}).train_dataloader()
    for sizes, wrong in (({**SIZES, "image": 20}, 12), ({**dict.fromkeys(SIZES, 10), "image": 24}, 24)):
        with pytest.raises(InputError, match=f"global_batch_size={wrong}: cannot be shared by 5 processes"):
            ready(sources, share=(0, 5), global_batch_size=sizes).train_dataloader()


def test_evaluation_asks_for_each_shard_well_before_it_is_read(sources, monkeypatch):
    asked, reading = [], count()
    monkeypatch.setattr(ShardSet, "prefetch", lambda self, samples: asked.append((next(reading), samples.tolist())))
    module = ready(val={"web": sources["image"]}, stage="validate", eval_batch_size=1)
    monkeypatch.setattr("ivt2.datamodules.loader.BATCHES_AHEAD", 5)
    (loader,) = module.val_dataloader()
    assert len(list(loader)) == 24
    assert asked[0] == (0, [1, 2, 3, 4, 5])
    assert asked[1:] == [(number, [number + 5] if number + 5 < 24 else []) for number in range(1, 24)]
    assert BATCHES_AHEAD == 64


def test_each_rank_asks_for_its_own_part_of_later_evaluation_batches(sources):
    parts = []
    for rank in range(2):
        module = ready(val={"web": sources["image"]}, stage="validate", share=(rank, 2), eval_batch_size=3)
        parts.append(module.val_dataloader()[0]._part(0))
    assert [part.samples for part in parts] == [range(3), range(3, 6)]
    assert sorted(index for part in parts for index in part.ahead.tolist()) == list(range(6, 24))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_remote_sets_are_evaluated_like_local_ones(sources, tmp_path, monkeypatch, num_workers):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(sources["video"], "/media/video", recursive=True)
    sets = {"here": sources["video"], "there": "memory://media/video"}
    here, there = (
        list(loader) for loader in ready(val=sets, stage="validate", num_workers=num_workers).val_dataloader()
    )
    memory.rm("/media", recursive=True)
    assert [batch["key"] for batch in here] == [batch["key"] for batch in there]
    assert all(torch.equal(*(batch["video"] for batch in pair)) for pair in zip(here, there, strict=True))

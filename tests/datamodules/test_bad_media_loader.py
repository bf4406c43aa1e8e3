"""Every kind of bad input by number, in one stream: trained on + ledger = input, alike for any number of workers.

The tables are in tests/data: bad_media.py (files and captions, in one set of several shards) and bad_shards.py (each a
set of its own).
"""

import time

import numpy as np
import pytest
import torch

from ivt2.data.sampling import middle
from ivt2.data.shards import ShardWriter
from ivt2.data.transforms import Resize
from ivt2.errors import InputError
from tests.data.bad_media import CAPTION, FRAMES, MEDIA, TEXT, judged, media
from tests.data.bad_shards import OURS, TARS, good
from tests.data.clips import all_frames
from tests.datamodules.clip_sets import LetterTokenizer, datamodule

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

TIMEOUT_S = 20.0
PAIRS = {"59": "text_missing", "60": "video_missing"}
KEPT = {"68_control_characters": "a \x00\x07\u202e\u200f dog \x1b[31m", "74_unknown_letters": "\u9762\u6761"}
"""Odd captions that are trained on, as the tokenizer gets them."""
STREAMED = {kind: expected for kind, (_, expected) in TARS.items() if not isinstance(expected, str)}
REFUSED = {kind: expected for kind, (_, expected) in TARS.items() if isinstance(expected, str)}
BY_TIME = {"variable_rate": [4, 6]}
"""Frames on the screen a quarter-way into each half of the time, where the rate is not constant."""


def name(kind):
    return f"{kind[0]}_{kind[1]}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folder of each source: ``media`` holds every kind of file and caption, then one for each kind of shard."""
    root = tmp_path_factory.mktemp("bad")
    with ShardWriter(root / "media", max_samples=25, max_bytes=1 << 30) as writer:
        for kind in MEDIA:
            writer.write(name(kind), {"mp4": media(kind), "json": CAPTION})
        for kind, (text, _) in TEXT.items():
            writer.write(name(kind), {**good(0), "json": text})
        writer.write("59", {"mp4": good(0)["mp4"]})
        writer.write("60", {"json": CAPTION})
    for kind, (make, _) in TARS.items():
        (root / name(kind)).mkdir()
        make(root / name(kind))
    return root


def stream(root, num_workers):
    """Pixels and caption of each sample trained on, by source and key; rows and counts of the ledger."""
    module = datamodule(
        {folder: str(root / folder) for folder in ("media", *map(name, STREAMED))},
        isolate=True,
        decoder_timeout_s=TIMEOUT_S,
        num_workers=num_workers,
        num_streams=1,
        train_transforms=[Resize(16)],
        train_sampling=middle,
        train_captions="first",
        global_batch_size=1,
        budget=1.0,
    )
    rows, used = [], {}
    module.ledger.listener = rows.append
    module.setup("fit")
    began = time.monotonic()
    for batch in module.train_dataloader():
        for key, video, ids in zip(batch["key"], batch["video"], batch["input_ids"], strict=True):
            assert (batch["source"], key) not in used
            used[batch["source"], key] = video.clone(), ids.tolist()
        assert time.monotonic() - began < 2 * TIMEOUT_S
        began = time.monotonic()
    return used, rows, module.ledger.state_dict()


@pytest.fixture(scope="module")
def streamed(sources):
    return stream(sources, num_workers=0)


def test_trained_on_and_ledger_are_the_input(streamed):
    used, rows, account = streamed
    assert all(row.shard.endswith(".tar") for row in rows)
    skipped = [row.key for row in rows if row.source == "media"]
    trained = [key for source, key in used if source == "media"]
    assert sorted(trained + skipped) == sorted([*map(name, MEDIA), *map(name, TEXT), *PAIRS])
    in_shards = sum(len(keys) + len(reasons) for keys, reasons in STREAMED.values())
    assert len(used) + len(rows) == len(MEDIA) + len(TEXT) + len(PAIRS) + in_shards == account["seen"]


@pytest.mark.parametrize("kind", MEDIA, ids=name)
def test_media(kind, streamed):
    reasons = [row.reason for row in streamed[1] if (row.source, row.key) == ("media", name(kind))]
    if reasons:
        assert len(reasons) == 1
        assert reasons[0] in MEDIA[kind][1]
        return
    assert FRAMES in MEDIA[kind][1]
    check(streamed[0]["media", name(kind)], judged(kind), BY_TIME.get(kind[1]))


def test_texts_and_pairs(streamed):
    used, rows, _ = streamed
    expected = {name(kind): reason for kind, (_, reason) in TEXT.items()} | PAIRS
    found = {row.key: row.reason for row in rows if row.source == "media" and row.key in expected}
    assert found == {key: reason for key, reason in expected.items() if reason is not None}
    assert expected.keys() - found.keys() == KEPT.keys()
    for key, caption in KEPT.items():
        check(used["media", key], all_frames(good(0)["mp4"]), caption=caption)


@pytest.mark.parametrize("kind", STREAMED, ids=name)
def test_shards(kind, streamed):
    keys, reasons = STREAMED[kind]
    assert sorted(key for source, key in streamed[0] if source == name(kind)) == keys
    assert sorted(row.reason for row in streamed[1] if row.source == name(kind)) == reasons
    for key in keys:
        number = int(key[-1]) if kind[0] in OURS else 0
        check(streamed[0][name(kind), key], all_frames(good(number)["mp4"]))


def check(clip, frames, chosen=None, caption="a dog"):
    """The clip is the frames that the rule chooses, and its caption the one that was written."""
    pixels, ids = clip
    whole = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    assert torch.equal(pixels, Resize(16)(whole[chosen or middle(len(frames), 2)], np.random.default_rng(0)))
    assert ids == LetterTokenizer()([caption])[0][0].tolist()


@pytest.mark.dist
@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(sources, streamed, num_workers):
    used, rows, account = stream(sources, num_workers)
    assert rows == streamed[1]
    assert account == streamed[2]
    assert list(used) == list(streamed[0])
    for sample, (clip, ids) in used.items():
        assert torch.equal(clip, streamed[0][sample][0])
        assert ids == streamed[0][sample][1]


@pytest.mark.parametrize("kind", REFUSED, ids=name)
def test_what_is_no_shard_is_refused_in_one_line(kind, sources):
    with pytest.raises(InputError, match=REFUSED[kind]) as error:
        datamodule({"web": str(sources / name(kind))}).setup("fit")
    assert "\n" not in str(error.value)

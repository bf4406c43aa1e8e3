"""Every kind of bad input by number: what it becomes when it is decoded or packed.

The table is in bad_media.py and bad_shards.py; tests/datamodules/test_bad_media_loader.py streams all of it.
"""

import os
import time

import numpy as np
import pytest

from ivt2.data.annotations import Annotation
from ivt2.data.containers import DecodeError
from ivt2.data.decode import decode_video
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import Ledger
from ivt2.data.shards import ShardSet
from tests.data.bad_media import FRAMES, MEDIA, TEXT, judged, media, playlist
from tests.data.bad_shards import TARS, many_members
from tests.data.clips import encode
from tests.data.test_packing import packed

TIMEOUT_S = 20.0
PATHS = {35, 37, 38, 39}
"""Kinds of test_35_37_38_39_paths_are_not_followed."""
ELSEWHERE = {50}
"""Kinds that bad_media.py says cannot be made, and what stands for them."""


@pytest.fixture(scope="module")
def process():
    process = DecoderProcess(timeout_s=TIMEOUT_S)
    yield process
    process.close()


def outcome(data, process):
    try:
        return decode_video(data, lambda num_frames, _: range(num_frames), process=process).frames
    except DecodeError as error:
        return error.reason


def test_every_number_has_its_place():
    if "av1" not in {name for _, name in MEDIA}:
        pytest.skip("this PyAV cannot encode AV1, number 26")
    numbers = {number for table in (MEDIA, TEXT, TARS) for number, _ in table}
    assert numbers | PATHS | ELSEWHERE == set(range(1, 75))
    assert numbers.isdisjoint(PATHS | ELSEWHERE)


@pytest.mark.parametrize("kind", MEDIA, ids=lambda kind: f"{kind[0]}_{kind[1]}")
def test_media(kind, process):
    data, began = media(kind), time.monotonic()
    result = outcome(data, process)
    assert time.monotonic() - began < 2 * TIMEOUT_S
    if isinstance(result, str):
        assert result in MEDIA[kind][1]
        return
    assert FRAMES in MEDIA[kind][1]
    np.testing.assert_array_equal(result.permute(0, 2, 3, 1).numpy(), judged(kind))


def test_62_a_shard_of_many_members_is_gone_through(tmp_path):
    many_members(5000)(tmp_path)
    shards = ShardSet.open(tmp_path)
    assert len(shards) == 5000
    assert shards.types(4999) == ("txt",)
    assert shards.read(4999).members == {"txt": b"x"}


def test_35_37_38_39_paths_are_not_followed(tmp_path):
    root = tmp_path / "media"
    (root / "folder.mp4").mkdir(parents=True)
    (root / "list.m3u8").write_bytes(playlist("file:///etc/hostname"))
    (root / "good.mp4").write_bytes(encode(num_frames=2))
    os.mkfifo(root / "fifo.mp4")
    (root / "loop.mp4").symlink_to("loop.mp4")
    reasons = {
        "list.m3u8": "file_type_unknown",
        "fifo.mp4": "file_missing",
        "folder.mp4": "file_missing",
        "loop.mp4": "file_unreadable",
    }
    records = [Annotation(file=name, captions=("a dog",)) for name in [*reasons, "good.mp4"]]
    ledger, rows = Ledger(9), []
    ledger.listener = rows.append
    manifest, _ = packed(records, root, tmp_path / "set", ledger=ledger)
    assert (manifest.samples, ledger.seen) == (1, 5)
    assert {row.key: row.reason for row in rows} == reasons

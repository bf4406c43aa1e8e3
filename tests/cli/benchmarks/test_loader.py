"""Exact: both sides of the comparison do the same work."""

from dataclasses import replace

import numpy as np

from ivt2.cli.benchmarks.clips import raw_footage, rendered, write_shards
from ivt2.cli.benchmarks.loader import BATCH_SIZE, datamodule, decoding


def test_loader_and_bare_decoder_get_the_same_frames(tmp_path):
    clips = rendered(tmp_path, replace(raw_footage(6), width=256, height=256), 2)
    data = datamodule(write_shards(tmp_path / "set", clips, BATCH_SIZE), num_frames=3, num_workers=0, isolate=False)
    data.train_transforms = []
    data.setup("fit")
    (batch,) = data.train_dataloader()
    bare = decoding(clips, 3)
    for key, video in zip(batch["key"], batch["video"], strict=True):
        assert np.array_equal(video, bare(int(key.removeprefix("clip_"))))

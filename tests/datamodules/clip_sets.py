"""Small shard sets, good and bad, and a tokenizer, for the tests of this folder."""

import json
from functools import cache

import torch

from ivt2.batch import Vocabulary
from ivt2.data.shards import ShardWriter
from ivt2.data.transforms import RandomResizedCrop, Resize
from ivt2.datamodules.media_text import MediaTextDataModule
from tests.data.clips import encode, encode_audio


class LetterTokenizer:
    """One id for each letter."""

    vocabulary = Vocabulary(size=300, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)

    def __call__(self, captions):
        rows = [([2] + [5 + ord(letter) % 290 for letter in caption] + [0] * 24)[:24] for caption in captions]
        input_ids = torch.tensor(rows, dtype=torch.int64).view(-1, 24)
        return input_ids, input_ids != 0


@cache
def video(num_frames=8):
    return encode(num_frames=num_frames, height=32, width=48, gop=4)


def caption(number):
    return {"caption": f"Clip {number}!", "captions": [f"clip {number} again", f"number {number}"]}


def write_clips(folder, num=12, max_samples=5, prefix="clip", bad=None):
    """Write clips; ``bad`` maps numbers to the members of samples that cannot be used."""
    with ShardWriter(folder, max_samples=max_samples, max_bytes=1 << 30) as writer:
        for number in range(num):
            good = {"mp4": video(6 + number % 4), "json": caption(number)}
            writer.write(f"{prefix}{number:02d}", (bad or {}).get(number, good))
    return str(folder)


def bad_samples():
    """Reason and members of every kind of sample that cannot be used."""
    text = {"json": caption(0)}
    whole = video()
    long = json.dumps({"caption": "word " * 210_000})
    return [
        ("video_missing", text),
        ("text_missing", {"mp4": whole}),
        ("not_video", {"mp4": b"", **text}),
        ("truncated", {"mp4": whole[: len(whole) // 2], **text}),
        ("no_video_stream", {"mp4": encode_audio("aac", "mp4"), **text}),
        ("not_video", {"mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", **text}),
        ("not_video", {"mp4": b"<!DOCTYPE html><html><body>404</body></html>", **text}),
        ("text_empty", {"mp4": whole, "json": {"caption": ""}}),
        ("text_empty", {"mp4": whole, "json": {"caption": "?!"}}),
        ("text_not_a_string", {"mp4": whole, "json": {"caption": ["a", "b"]}}),
        ("text_not_a_string", {"mp4": whole, "json": {"caption": None}}),
        ("text_too_long", {"mp4": whole, "json": long}),
        ("text_invalid_utf8", {"mp4": whole, "json": b'{"caption": "\xff"}'}),
        ("json_invalid", {"mp4": whole, "json": b"{"}),
    ]


def datamodule(train=None, val=None, **changed):
    arguments = {
        "train": train or {},
        "val": val or {},
        "tokenizer": LetterTokenizer(),
        "num_frames": 2,
        "train_transforms": [RandomResizedCrop(16)],
        "eval_transforms": [Resize(16)],
        "global_batch_size": 4,
        "eval_batch_size": 4,
        "seed": 7,
        "budget": 100,
        "isolate": False,
    }
    return MediaTextDataModule(**{**arguments, **changed})

"""Whether a shard set can be trained on: every text is read, a share of the media decoded, and all of it counted.

A sample has at most one reason, the first that is found, in the order in which a training run would come across it.
"""

import hashlib
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivt2.data.annotations import captions_of, facts_of, segment_of
from ivt2.data.containers import DecodeError, Limits
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import SampleError
from ivt2.data.order import permutation
from ivt2.data.sampling import middle
from ivt2.data.shards import ShardSet
from ivt2.data.tar_index import AUDIO_TYPES, IMAGE_TYPES, MEMBER_TYPES, VIDEO_TYPES
from ivt2.data.text import normalize_caption
from ivt2.errors import InputError

TEXT_TYPES = ("json", "txt")

_DECODED_TYPES = (*VIDEO_TYPES, *AUDIO_TYPES, *IMAGE_TYPES)
_MEDIA_TYPES = tuple(kind for kind in MEMBER_TYPES if kind not in TEXT_TYPES)
_SAMPLE_RATE_HZ = 16_000
_END_SLACK_S = 1.0  # annotated ends are often rounded up to a whole second
_NUM_EXAMPLES = 3


@dataclass
class Findings:
    """What was counted in a shard set.

    Args:
        samples: how many the manifest promises.
        chosen: how many of them were to be decoded.
    """

    samples: int
    chosen: int
    decoded: int = 0
    """Chosen samples whose text was in order and that could be decoded."""
    in_text: Counter[str] = field(default_factory=Counter)
    """Samples that cannot be used, by reason, found in the shards and texts: in all samples."""
    in_media: Counter[str] = field(default_factory=Counter)
    """The same, found by decoding: among those that were decoded only."""
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The first keys of each reason."""
    media_without_text: int = 0
    text_without_media: int = 0
    late_ends: int = 0
    """Decoded clips whose segment ends more than a second after them; they are usable."""
    types: Counter[str] = field(default_factory=Counter)
    duplicate_keys: dict[str, int] = field(default_factory=dict)
    """Keys that name several samples, and how many."""
    captions_per_sample: "array[int]" = field(default_factory=lambda: array("q"))
    caption_lengths: "array[int]" = field(default_factory=lambda: array("q"))
    """In characters."""
    captions_not_ascii: int = 0
    """Captions with letters that are not ASCII."""
    durations_s: "array[float]" = field(default_factory=lambda: array("d"))
    """Of the decoded videos and sounds."""

    @property
    def reasons(self) -> dict[str, int]:
        """Samples found that cannot be used, in the order of the reasons' names."""
        return dict(sorted((self.in_text + self.in_media).items()))

    @property
    def unusable(self) -> float:
        """Samples that cannot be used, as estimated for the whole set: exact when all were to be decoded."""
        found, failed = self.in_text.total(), self.in_media.total()
        tried = failed + self.decoded
        return found + (failed * (self.samples - found) / tried if tried else 0.0)

    def reject(self, key: str, reason: str, counts: Counter[str]) -> None:
        """Enter a sample that cannot be used."""
        counts[reason] += 1
        if len(self.examples[reason]) < _NUM_EXAMPLES:
            self.examples[reason].append(key)

    def to_json(self) -> dict[str, Any]:
        """Return all counts in types that json knows."""
        return {
            "samples": self.samples,
            "decoding": {"chosen": self.chosen, "decoded": self.decoded, "failed": self.in_media.total()},
            "unusable": {
                "found": sum(self.reasons.values()),
                "estimated": round(self.unusable, 3),
                "reasons": self.reasons,
                "examples": dict(sorted(self.examples.items())),
            },
            "duplicate_keys": self.duplicate_keys,
            "missing_pairs": {
                "media_without_text": self.media_without_text,
                "text_without_media": self.text_without_media,
            },
            "bad_times": {
                "segment_invalid": self.in_text["segment_invalid"],
                "segment_outside": self.in_media["segment_outside"],
                "ends_after_clip": self.late_ends,
            },
            "captions": {
                "count": len(self.caption_lengths),
                "empty": self.in_text["text_empty"],
                "per_sample": _spread(self.captions_per_sample),
                "characters": _spread(self.caption_lengths),
                "share_not_ascii": round(self.captions_not_ascii / max(len(self.caption_lengths), 1), 4),
            },
            "duration_s": {"total": round(math.fsum(self.durations_s), 3), **_spread(self.durations_s)},
            "types": dict(sorted(self.types.items())),
        }


def validate(
    shards: ShardSet,
    *,
    decode: float | int,
    process: DecoderProcess,
    captions: bool = True,
    num_frames: int = 8,
    seed: int = 0,
    on_sample: Callable[[], None] = lambda: None,
) -> Findings:
    """Go through a set, sample after sample.

    Args:
        shards: the set.
        decode: samples to decode: a float is a share in [0, 1], rounded up, an int a count.
        process: decodes them.
        captions: a sample needs a caption; False for sets of labels, conversations or media alone.
        num_frames: frames to decode of each video, evenly spread.
        seed: chooses the samples to decode, with the size of the set.
        on_sample: called after each sample.

    Returns:
        The counts; the same ones for the same arguments.

    Raises:
        InputError: when an argument cannot be used or the decoder process does not start.
    """
    if num_frames < 1:
        raise InputError(f"num_frames={num_frames}: must be at least 1")
    chosen = choose_samples(len(shards), decode, seed)
    findings = Findings(len(shards), int(chosen.sum()))
    digests = array("Q")
    for index in range(len(shards)):
        key, problem = shards.key(index), shards.problem(index)
        # a key that stands twice in its shard is one sample there
        digests.extend([_digest(key)] * (2 if problem == "duplicate_key" else 1))
        try:
            facts = _check_text(shards, index, findings, captions=captions)
        except SampleError as error:
            findings.reject(key, error.reason, findings.in_text)
        else:
            if chosen[index]:
                _try_media(shards, index, facts, findings, process=process, num_frames=num_frames)
        on_sample()
    findings.duplicate_keys = _duplicates(shards, digests)
    return findings


def choose_samples(num_samples: int, decode: float | int, seed: int) -> NDArray[np.bool_]:
    """Mark the samples to decode; more of them include the fewer.

    Args:
        num_samples: samples of the set.
        decode: a float is a share in [0, 1], rounded up, an int a count.
        seed: which ones.

    Raises:
        InputError: when ``decode`` is neither.
    """
    if decode < 0 or (isinstance(decode, float) and decode > 1):
        raise InputError(f"decode={decode}: give a share in [0, 1] as a float or a count of samples as an int")
    count = math.ceil(round(decode * num_samples, 6)) if isinstance(decode, float) else decode
    marks = np.zeros(num_samples, np.bool_)
    marks[permutation(num_samples, seed)[:count]] = True
    return marks


def _check_text(shards: ShardSet, index: int, findings: Findings, *, captions: bool) -> dict[str, Any]:
    """Count what a sample has and says, and return its facts.

    Raises:
        SampleError: it cannot be used.
    """
    members = shards.read(index, TEXT_TYPES).members
    types = set(shards.types(index))
    findings.types.update(types)
    has_media, has_text = not types.isdisjoint(_MEDIA_TYPES), not types.isdisjoint(TEXT_TYPES)
    findings.media_without_text += has_media and not has_text
    findings.text_without_media += has_text and not has_media
    try:
        texts = captions_of(members)
    except SampleError as error:
        if captions or error.reason != "text_missing":
            raise
        texts = []
    if not all(map(normalize_caption, texts)):
        raise SampleError("text_empty")
    if not has_media:
        raise SampleError("media_missing")
    facts = facts_of(members)
    segment_of(facts)
    findings.captions_per_sample.append(len(texts))
    findings.caption_lengths.extend(map(len, texts))
    findings.captions_not_ascii += sum(any(c.isalpha() and not c.isascii() for c in text) for text in texts)
    return facts


def _try_media(
    shards: ShardSet,
    index: int,
    facts: Mapping[str, Any],
    findings: Findings,
    *,
    process: DecoderProcess,
    num_frames: int,
) -> None:
    """Decode the media of a sample and compare their length with the times of its record."""
    try:
        members = shards.read(index, _DECODED_TYPES).members
        durations_s = [_duration(kind, data, process, num_frames) for kind, data in members.items()]
        known_s = [duration_s for duration_s in durations_s if duration_s is not None]
        start_s, end_s = segment_of(facts)
        if known_s and start_s >= max(known_s):
            raise SampleError("segment_outside")
    except (SampleError, DecodeError) as error:
        findings.reject(shards.key(index), error.reason, findings.in_media)
        return
    findings.decoded += 1
    findings.durations_s.extend(known_s)
    findings.late_ends += bool(known_s) and math.isfinite(end_s) and end_s > max(known_s) + _END_SLACK_S


def _duration(kind: str, data: bytes, process: DecoderProcess, num_frames: int) -> float | None:
    """Decode a member and return its length in seconds; None for a picture.

    Raises:
        DecodeError: it cannot be decoded.
    """
    limits = Limits()
    if kind in IMAGE_TYPES:
        process.read_image(data, limits)
        return None
    if kind in AUDIO_TYPES:
        sound = process.read_audio(data, sample_rate_hz=_SAMPLE_RATE_HZ, limits=limits, start_s=None, end_s=None)
        if sound is None:
            raise DecodeError("not_audio", "no audio track")
        return len(sound) / _SAMPLE_RATE_HZ
    video = process.read_video(
        data,
        lambda length, _: middle(length, num_frames),
        backend="auto",
        limits=limits,
        start_s=None,
        end_s=None,
        by_time=True,
    )
    return video.duration_s


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _duplicates(shards: ShardSet, digests: "array[int]") -> dict[str, int]:
    """Keys of several samples; eight bytes a key are kept, and the keys are read again only when some are equal."""
    values, counts = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return {}
    keys: Counter[str] = Counter()
    for index in range(len(shards)):
        if _digest(key := shards.key(index)) in suspects:
            keys[key] += 2 if shards.problem(index) == "duplicate_key" else 1
    return {key: count for key, count in sorted(keys.items()) if count > 1}


def _spread(values: "array[Any]") -> dict[str, float | None]:
    """Least, median, 95 % and largest value, each None when there are no values."""
    names = ("min", "median", "p95", "max")
    if not values:
        return dict.fromkeys(names)
    quantiles = np.percentile(np.asarray(values), [0, 50, 95, 100])
    return {name: round(float(value), 3) for name, value in zip(names, quantiles, strict=True)}

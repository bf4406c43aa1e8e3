"""Whether a shard set can be trained on: every text is read, a share of the media decoded, and all of it counted.

A sample has at most one reason, the first that is found, in the order in which a training run would come across it.
"""

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivt2.data.annotations import captions_of, facts_of, segment_of
from ivt2.data.captions import kinds_of
from ivt2.data.containers import DecodeError, Limits
from ivt2.data.findings import Findings
from ivt2.data.isolation import DecoderProcess
from ivt2.data.languages import language_of
from ivt2.data.ledger import SampleError
from ivt2.data.order import permutation
from ivt2.data.sampling import middle
from ivt2.data.shards import ShardSet
from ivt2.data.sound import SAMPLE_RATE_HZ
from ivt2.data.tar_index import AUDIO_TYPES, IMAGE_TYPES, MEMBER_TYPES, TEXT_TYPES, VIDEO_TYPES
from ivt2.data.text import normalize_caption
from ivt2.data.workers import in_order
from ivt2.errors import InputError

_DECODED_TYPES = (*VIDEO_TYPES, *AUDIO_TYPES, *IMAGE_TYPES)
_MEDIA_TYPES = tuple(kind for kind in MEMBER_TYPES if kind not in TEXT_TYPES)
_HEARD_S = 1.0  # of the track of a video: enough to know that it can be decoded
_END_SLACK_S = 1.0  # annotated ends are often rounded up to a whole second
_MAX_TEXTS = 10_000  # captions whose language is told: shares within 1 %
_PIECE = 32  # samples that a process does at a time
_MAX_PIECES = 100_000


def validate(
    shards: ShardSet,
    *,
    decode: float | int,
    process: DecoderProcess,
    num_processes: int = 1,
    captions: bool = True,
    caption_kinds: Sequence[str] = (),
    num_frames: int = 8,
    seed: int = 0,
    on_samples: Callable[[int], object] = lambda _: None,
) -> Findings:
    """Go through a set.

    Args:
        shards: the set.
        decode: samples to decode: a float is a share in [0, 1], rounded up, an int a count.
        process: decodes them; each of several processes starts one like it.
        num_processes: how many read and decode.
        captions: a sample needs a caption; False for sets of labels, conversations or media alone.
        caption_kinds: kinds of captions that each sample needs besides.
        num_frames: frames to decode of each video, evenly spread.
        seed: chooses, with the size of the set, the samples to decode and those whose language is told.
        on_samples: called with the number of samples that were done since.

    Returns:
        The counts; the same ones for the same arguments, whatever the number of processes.

    Raises:
        InputError: when an argument cannot be used or the decoder process does not start.
    """
    if num_frames < 1:
        raise InputError(f"num_frames={num_frames}: must be at least 1")
    check = _Check(
        shards=shards,
        decoded=choose_samples(len(shards), decode, seed),
        told=choose_samples(len(shards), _MAX_TEXTS, seed),
        process=process,
        captions=captions,
        needed_kinds=caption_kinds,
        num_frames=num_frames,
    )
    findings = Findings()
    with closing(in_order(check, _pieces(shards), num_processes=num_processes)) as parts:
        for part in parts:
            findings.merge(part)
            on_samples(part.samples)
    findings.languages.update(map(language_of, findings.texts))
    findings.duplicate_keys = _duplicates(shards, findings.key_digests)
    return findings


def _pieces(shards: ShardSet) -> list[range]:
    """Consecutive samples that are done together, each of one shard."""
    size = max(_PIECE, len(shards) // _MAX_PIECES)
    pieces, first = [], 0
    for num_samples in shards.samples_per_shard:
        end = first + num_samples
        pieces += [range(begin, min(begin + size, end)) for begin in range(first, end, size)]
        first = end
    return pieces


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


@dataclass(frozen=True, kw_only=True)
class _Check:
    """Counts what some samples have and say, and decodes those of them that were chosen."""

    shards: ShardSet
    decoded: NDArray[np.bool_]
    """Samples to decode."""
    told: NDArray[np.bool_]
    """Samples whose main caption's language is told."""
    process: DecoderProcess
    captions: bool
    needed_kinds: Sequence[str]
    num_frames: int

    def __call__(self, samples: range) -> Findings:
        findings = Findings(len(samples), int(self.decoded[samples.start : samples.stop].sum()))
        for index in samples:
            key = self.shards.key(index)
            # a key that stands twice in its shard is one sample there
            times = 2 if self.shards.problem(index) == "duplicate_key" else 1
            findings.key_digests.extend([_digest(key)] * times)
            try:
                facts = self._check_text(index, findings)
            except SampleError as error:
                findings.reject(key, error.reason, findings.in_text)
            else:
                if self.decoded[index]:
                    self._try_media(index, facts, findings)
        return findings

    def _check_text(self, index: int, findings: Findings) -> dict[str, Any]:
        """Count what a sample has and says, and return its facts.

        Raises:
            SampleError: it cannot be used.
        """
        members = self.shards.read(index, TEXT_TYPES).members
        types = set(self.shards.types(index))
        findings.types.update(types)
        has_media, has_text = not types.isdisjoint(_MEDIA_TYPES), not types.isdisjoint(TEXT_TYPES)
        findings.media_without_text += has_media and not has_text
        findings.text_without_media += has_text and not has_media
        try:
            texts = captions_of(members)
        except SampleError as error:
            if self.captions or error.reason != "text_missing":
                raise
            texts = []
        normalized = [normalize_caption(text) for text in texts]
        if not all(normalized):
            raise SampleError("text_empty")
        if not has_media:
            raise SampleError("media_missing")
        facts = facts_of(members)
        segment_of(facts)
        stated = kinds_of(members)
        if not set(self.needed_kinds).issubset(stated):
            raise SampleError("caption_kind_missing")
        findings.captions_per_sample.append(len(texts))
        findings.caption_lengths.extend(map(len, texts))
        findings.caption_words.extend(len(text.split()) for text in normalized)
        findings.captions_not_ascii += sum(any(c.isalpha() and not c.isascii() for c in text) for text in texts)
        findings.texts += texts[: int(self.told[index])]
        findings.caption_kinds.update(stated)
        return facts

    def _try_media(self, index: int, facts: Mapping[str, Any], findings: Findings) -> None:
        """Decode the media of a sample and compare their length with the times of its record."""
        try:
            members = self.shards.read(index, _DECODED_TYPES).members
            durations_s = [self._duration(kind, data) for kind, data in members.items()]
            known_s = [duration_s for duration_s in durations_s if duration_s is not None]
            start_s, end_s = segment_of(facts)
            if known_s and start_s >= max(known_s):
                raise SampleError("segment_outside")
        except (SampleError, DecodeError) as error:
            findings.reject(self.shards.key(index), error.reason, findings.in_media)
            return
        findings.decoded += 1
        findings.durations_s.extend(known_s)
        findings.late_ends += bool(known_s) and math.isfinite(end_s) and end_s > max(known_s) + _END_SLACK_S
        if known_s:
            findings.sounds[self._sound(members)] += 1

    def _duration(self, kind: str, data: bytes) -> float | None:
        """Decode a member and return its length in seconds; None for a picture.

        Raises:
            DecodeError: it cannot be decoded.
        """
        limits = Limits()
        if kind in IMAGE_TYPES:
            self.process.read_image(data, limits)
            return None
        if kind in AUDIO_TYPES:
            sound = self.process.read_audio(
                data, sample_rate_hz=SAMPLE_RATE_HZ, limits=limits, start_s=None, end_s=None
            )
            if sound is None:
                raise DecodeError("not_audio", "no audio track")
            return len(sound) / SAMPLE_RATE_HZ
        video = self.process.read_video(
            data,
            lambda length, _: middle(length, self.num_frames),
            backend="auto",
            limits=limits,
            start_s=None,
            end_s=None,
            by_time=True,
        )
        return video.duration_s

    def _sound(self, members: Mapping[str, bytes]) -> str:
        """Whether a sample whose media were decoded can be heard."""
        if any(kind in AUDIO_TYPES for kind in members):
            return "with_track"
        heard = [self._heard(data) for kind, data in members.items() if kind in VIDEO_TYPES]
        return max(heard, key=("without", "unreadable", "with_track").index)

    def _heard(self, data: bytes) -> str:
        try:
            sound = self.process.read_audio(
                data, sample_rate_hz=SAMPLE_RATE_HZ, limits=Limits(), start_s=None, end_s=_HEARD_S
            )
        except DecodeError:
            return "unreadable"
        return "without" if sound is None else "with_track"


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

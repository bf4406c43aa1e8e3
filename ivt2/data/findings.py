"""What was counted in a shard set, and how it is told."""

import math
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from typing_extensions import Self

NUM_EXAMPLES = 3
MIN_WORDS = 2
"""Source: reference multi_modality leaves out captions of fewer words when pretraining (spec stage2 section 3.2)."""


@dataclass
class Findings:
    """What was counted in a shard set, or in some of its samples.

    Args:
        samples: how many there are.
        chosen: how many of them were to be decoded.
    """

    samples: int = 0
    chosen: int = 0
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
    key_digests: "array[int]" = field(default_factory=lambda: array("Q"))
    """Eight bytes of the hash of each key; equal keys have equal ones."""
    captions_per_sample: "array[int]" = field(default_factory=lambda: array("q"))
    caption_lengths: "array[int]" = field(default_factory=lambda: array("q"))
    """In characters."""
    caption_words: "array[int]" = field(default_factory=lambda: array("q"))
    """As separated by blanks when normalised; a caption in Chinese is one."""
    captions_not_ascii: int = 0
    """Captions with letters that are not ASCII."""
    caption_kinds: Counter[str] = field(default_factory=Counter)
    """Samples that have a text of each kind."""
    texts: list[str] = field(default_factory=list)
    """Main captions whose language is to be told."""
    languages: Counter[str] = field(default_factory=Counter)
    """Those captions by language."""
    sounds: Counter[str] = field(default_factory=Counter)
    """Decoded videos and sounds by whether they can be heard."""
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
        if len(self.examples[reason]) < NUM_EXAMPLES:
            self.examples[reason].append(key)

    def merge(self, later: Self) -> None:
        """Add what was counted in the samples that follow."""
        for name in ("samples", "chosen", "decoded", "media_without_text", "text_without_media", "late_ends"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.captions_not_ascii += later.captions_not_ascii
        for name in ("in_text", "in_media", "types", "caption_kinds", "languages", "sounds"):
            getattr(self, name).update(getattr(later, name))
        for name in ("key_digests", "captions_per_sample", "caption_lengths", "caption_words", "texts", "durations_s"):
            getattr(self, name).extend(getattr(later, name))
        for reason, keys in later.examples.items():
            self.examples[reason] = (self.examples[reason] + keys)[:NUM_EXAMPLES]

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
                "under_two_words": int((np.asarray(self.caption_words) < MIN_WORDS).sum()),
                "per_sample": _spread(self.captions_per_sample),
                "words": _spread(self.caption_words),
                "characters": _spread(self.caption_lengths),
                "share_not_ascii": round(self.captions_not_ascii / max(len(self.caption_lengths), 1), 4),
                "kinds": dict(sorted(self.caption_kinds.items())),
            },
            "languages": {"captions": self.languages.total(), "shares": self._language_shares()},
            "sound": {name: self.sounds[name] for name in ("with_track", "without", "unreadable")},
            "duration_s": {"total": round(math.fsum(self.durations_s), 3), **_spread(self.durations_s)},
            "types": dict(sorted(self.types.items())),
        }

    def _language_shares(self) -> dict[str, float]:
        """The most frequent first."""
        counts = sorted(self.languages.items(), key=lambda item: (-item[1], item[0]))
        return {language: round(count / self.languages.total(), 4) for language, count in counts}


def _spread(values: "array[Any]") -> dict[str, float | None]:
    """Least, median, 95 % and largest value, each None when there are no values."""
    names = ("min", "median", "p95", "max")
    if not values:
        return dict.fromkeys(names)
    quantiles = np.percentile(np.asarray(values), [0, 50, 95, 100])
    return {name: round(float(value), 3) for name, value in zip(names, quantiles, strict=True)}

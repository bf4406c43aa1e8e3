"""What the text members of a sample say of it: captions as annotated, normalised and by kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from ivt2.data.annotations import captions_of, checked_text, facts_of
from ivt2.data.ledger import SampleError
from ivt2.data.text import normalize_caption


class Captions(NamedTuple):
    """Captions of one sample that may be used."""

    annotated: list[str]
    """As annotated, the main one first."""
    text: list[str]
    """The same normalised, as the tokenizer takes them."""
    kinds: Mapping[str, list[str]] = MappingProxyType({})
    """Normalised captions of each kind that was asked for."""


@dataclass(frozen=True, kw_only=True)
class CaptionReader:
    """Reads the captions of a sample.

    Args:
        min_words: captions of fewer normalised words are not used; a sample without any other is left out.
        kinds: kinds of captions (names in ``caption_kinds`` of the json member) that each sample must have.

    Source: pretraining filter by words: reference multi_modality, ``min_caption_length`` (spec stage2 section 3.2).
    """

    min_words: int = 0
    kinds: Sequence[str] = ()

    def __call__(self, members: Mapping[str, bytes]) -> Captions:
        """Read the captions.

        Args:
            members: of the sample, by type.

        Raises:
            SampleError: there are none that can be used; the reason is a word of the annotations, or
                ``caption_kind_missing`` or ``text_too_short``.
        """
        annotated, text = _usable(captions_of(members), self.min_words)
        return Captions(annotated, text, self._by_kind(members))

    def _by_kind(self, members: Mapping[str, bytes]) -> dict[str, list[str]]:
        """Normalised captions of each kind; what is said in a clip may be short."""
        if not self.kinds:
            return {}
        stated = facts_of(members).get("caption_kinds")
        found = {}
        for kind in self.kinds:
            texts = stated.get(kind) if isinstance(stated, dict) else None
            if not texts:
                raise SampleError("caption_kind_missing")
            captions = [checked_text(text) for text in (texts if isinstance(texts, list) else [texts])]
            found[kind] = _usable(captions, 0 if kind == "speech" else self.min_words)[1]
        return found


def choose_caption(text: Sequence[str], policy: Literal["random", "first"], generator: np.random.Generator) -> str:
    """Return the normalised caption that a training step uses; nothing is drawn when there is no choice."""
    if policy == "first" or len(text) == 1:
        return text[0]
    return text[int(generator.integers(len(text)))]


def _usable(captions: list[str], min_words: int) -> tuple[list[str], list[str]]:
    """Captions that are long enough, as annotated and normalised."""
    text = [normalize_caption(caption) for caption in captions]
    if not all(text):
        raise SampleError("text_empty")
    long_enough = [len(words.split()) >= min_words for words in text]
    if not any(long_enough):
        raise SampleError("text_too_short")
    return (
        [caption for caption, kept in zip(captions, long_enough, strict=True) if kept],
        [words for words, kept in zip(text, long_enough, strict=True) if kept],
    )

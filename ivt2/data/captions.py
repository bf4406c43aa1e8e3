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
    """As annotated, the main one first; or those of the kind that is to be read in their place."""
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
        instead: a kind that is read in place of the annotated captions; None reads these.

    Source: pretraining filter by words: reference multi_modality, ``min_caption_length`` (spec stage2 section 3.2).
    """

    min_words: int = 0
    kinds: Sequence[str] = ()
    instead: str | None = None

    def __call__(self, members: Mapping[str, bytes]) -> Captions:
        """Read the captions.

        Args:
            members: of the sample, by type.

        Raises:
            SampleError: there are none that can be used; the reason is a word of the annotations, or
                ``caption_kind_missing`` or ``text_too_short``.
        """
        if self.instead is None:
            annotated, text = _usable(captions_of(members), self.min_words)
        else:
            annotated, text = self._of_kind(self.instead, _stated_kinds(members))
        if not self.kinds:
            return Captions(annotated, text)
        stated = _stated_kinds(members)
        return Captions(annotated, text, {kind: self._of_kind(kind, stated)[1] for kind in self.kinds})

    def _of_kind(self, kind: str, stated: Mapping[str, object]) -> tuple[list[str], list[str]]:
        """Captions of a kind, as annotated and normalised; what is said in a clip may be short."""
        texts = stated.get(kind)
        if not texts:
            raise SampleError("caption_kind_missing")
        captions = [checked_text(text) for text in (texts if isinstance(texts, list) else [texts])]
        return _usable(captions, 0 if kind == "speech" else self.min_words)


def kinds_of(members: Mapping[str, bytes]) -> list[str]:
    """Kinds of which the text members of a sample have captions.

    Raises:
        SampleError: they cannot be read.
    """
    return [kind for kind, texts in _stated_kinds(members).items() if texts]


def _stated_kinds(members: Mapping[str, bytes]) -> Mapping[str, object]:
    stated = facts_of(members).get("caption_kinds")
    return stated if isinstance(stated, dict) else {}


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

"""One sample for a file that an annotation names in several records."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation, Source


class MergedAnnotations:
    """A source whose captions of the same clip are brought together, so that its file is packed once.

    Records belong together when file, beginning and end are equal and they hold captions alone; the others stay as
    they are. A clip stands where its first record does and keeps that record's facts. All records are in memory.

    Args:
        source: of the records.
    """

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._source = source

    def __iter__(self) -> Iterator[Annotation | Skipped]:
        """Return each clip, and why records cannot be used.

        Raises:
            InputError: as the source.
        """
        yield from self._merged

    def count(self) -> int:
        """Return how many clips and records that cannot be used there are.

        Raises:
            InputError: as the source.
        """
        return len(self._merged)

    @cached_property
    def _merged(self) -> list[Annotation | Skipped]:
        merged: list[Annotation | Skipped] = []
        captions: dict[int, dict[str, None]] = {}
        places: dict[tuple[str, float | None, float | None], int] = {}
        for record in self._source:
            if isinstance(record, Skipped) or not _only_captions(record):
                merged.append(record)
                continue
            place = places.setdefault((record.file, record.start_s, record.end_s), len(merged))
            if place == len(merged):
                merged.append(record)
            captions.setdefault(place, {}).update(dict.fromkeys(record.captions))
        for place, texts in captions.items():
            first = merged[place]
            assert isinstance(first, Annotation)
            merged[place] = replace(first, captions=tuple(texts))
        return merged


def _only_captions(record: Annotation) -> bool:
    others = (record.label, record.class_index, record.frames)
    return bool(record.captions) and not record.options and not record.turns and all(value is None for value in others)

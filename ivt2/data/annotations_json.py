"""Annotation files of json: one object a line, or one file that is a list of objects."""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ivt2.batch import Skipped
from ivt2.data.annotations import (
    Annotation,
    RecordType,
    annotated,
    decoded,
    finite,
    numbered_lines,
    parsed,
    refuse_constant,
)
from ivt2.data.ledger import SampleError
from ivt2.errors import InputError

MAX_JSON_BYTES = 1 << 30
"""A json list is read whole, at up to ten times its size in memory; jsonl has no limit."""


class JsonLinesAnnotations:
    """Records of a file of one json object a line, read line by line; blank lines are passed over.

    Args:
        annotations: the file.
        name: of the source.
        record: what the fields mean.
    """

    def __init__(self, annotations: str, *, name: str, record: RecordType) -> None:
        self.name = name
        self.record = record
        self._path = Path(annotations)

    def __iter__(self) -> Iterator[Annotation | Skipped]:
        """Return what each line says or why it cannot be used (its key is ``<file name>:<line>``).

        Raises:
            InputError: when the file cannot be read.
        """
        return annotated(self._records(), self.record, self.name)

    def count(self) -> int:
        """Return how many records there are.

        Raises:
            InputError: when the file cannot be read.
        """
        return sum(1 for _ in numbered_lines(self._path))

    def _records(self) -> Iterator[tuple[str, Mapping[str, Any] | SampleError]]:
        for number, line in numbered_lines(self._path):
            yield f"{self._path.name}:{number}", _fields(line)


class JsonAnnotations:
    """Records of one json file, which is read whole.

    Args:
        annotations: the file.
        name: of the source.
        record: what the fields mean.
        records: key under which the list lies; None where the file itself is the list.
        key_field: the file, or what lies under ``records``, is an object of records and not a list: the field that
            gets the key of each.
    """

    def __init__(
        self,
        annotations: str,
        *,
        name: str,
        record: RecordType,
        records: str | None = None,
        key_field: str | None = None,
    ) -> None:
        self.name = name
        self.record = record
        self._path = Path(annotations)
        self._under = records
        self._key_field = key_field

    def __iter__(self) -> Iterator[Annotation | Skipped]:
        """Return what each record says or why it cannot be used (its key is ``<file name>:<number>``, from 1).

        Raises:
            InputError: when the file cannot be read or is not what the source expects.
        """
        return annotated(self._records(), self.record, self.name)

    def count(self) -> int:
        """Return how many records there are.

        Raises:
            InputError: as iterating.
        """
        return len(self._list)

    def _records(self) -> Iterator[tuple[str, Mapping[str, Any] | SampleError]]:
        for number, fields in enumerate(self._list, 1):
            good = fields if isinstance(fields, dict) else SampleError("json_invalid")
            yield f"{self._path.name}:{number}", good

    @cached_property
    def _list(self) -> list[Any]:
        content = self._content()
        if self._under is not None:
            content = content.get(self._under) if isinstance(content, dict) else None
        if self._key_field is not None and isinstance(content, dict):
            name = self._key_field
            return [{**v, name: key} if isinstance(v, dict) else v for key, v in content.items()]
        if not isinstance(content, list):
            where = f" under {self._under!r}" if self._under else ""
            raise InputError(f"{self._path}: has no list of records{where}; give the file that {self.name} expects")
        return content

    def _content(self) -> Any:
        try:
            if (size := self._path.stat().st_size) > MAX_JSON_BYTES:
                raise InputError(f"{self._path}: {size} bytes are too many to read at once; write one object a line")
            text = decoded(self._path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
            return json.loads(text, parse_constant=refuse_constant, parse_float=finite)
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read ({error.strerror}); give a file of json") from error
        except (ValueError, RecursionError, SampleError) as error:
            raise InputError(f"{self._path}: is no json ({error}); give the file that {self.name} expects") from error


def _fields(line: bytes | None) -> Mapping[str, Any] | SampleError:
    if line is None:
        return SampleError("line_too_long")
    try:
        return parsed(line)
    except SampleError as error:
        return error

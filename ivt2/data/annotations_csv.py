"""Annotation files of one record a line, its fields between separators: csv, tsv, lists with blanks."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation, RecordType, annotated, decoded, numbered_lines
from ivt2.data.ledger import SampleError
from ivt2.errors import InputError


class CsvAnnotations:
    """Records of a delimited text file, read line by line; a quoted field does not go on in the next line.

    Args:
        annotations: the file.
        name: of the source.
        record: what the columns mean.
        columns: their names, in order; None where the first line has them.
        delimiter: one character; several blanks are as one.
        quoted: a field may stand in double quotes; false for files whose texts hold quotes of their own.

    Raises:
        InputError: when the delimiter is not one character or a column has no name of its own.
    """

    def __init__(
        self,
        annotations: str,
        *,
        name: str,
        record: RecordType,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
        quoted: bool = True,
    ) -> None:
        if len(delimiter) != 1:
            raise InputError(f"delimiter={delimiter!r}: give one character")
        self.name = name
        self.record = record
        self._path = Path(annotations)
        self._columns = None if columns is None else self._checked(columns)
        self._delimiter = delimiter
        self._quoted = quoted

    def __iter__(self) -> Iterator[Annotation | Skipped]:
        """Return what each line says or why it cannot be used (its key is ``<file name>:<line>``).

        Raises:
            InputError: when the file or its header cannot be read.
        """
        return annotated(self._records(), self.record, self.name)

    def count(self) -> int:
        """Return how many records there are.

        Raises:
            InputError: when the file cannot be read.
        """
        lines = sum(1 for _ in numbered_lines(self._path))
        return lines if self._columns is not None else max(lines - 1, 0)

    def _records(self) -> Iterator[tuple[str, Mapping[str, Any] | SampleError]]:
        columns = self._columns
        for number, line in numbered_lines(self._path):
            fields = self._fields(line)
            if columns is None:
                if isinstance(fields, SampleError):
                    raise InputError(f"{self._path}: has no header of columns ({fields}); set source.columns=[...]")
                columns = self._checked(fields)
                continue
            if not isinstance(fields, SampleError) and len(fields) != len(columns):
                fields = SampleError("columns_wrong")
            key = f"{self._path.name}:{number}"
            yield key, fields if isinstance(fields, SampleError) else dict(zip(columns, fields, strict=True))

    def _fields(self, line: bytes | None) -> list[str] | SampleError:
        if line is None:
            return SampleError("line_too_long")
        try:
            text = decoded(line).strip(" \r\n" if self._delimiter == "\t" else None)
            rows = csv.reader(
                [text],
                delimiter=self._delimiter,
                quoting=csv.QUOTE_MINIMAL if self._quoted else csv.QUOTE_NONE,
                skipinitialspace=True,
                strict=True,
            )
            return next(rows)
        except csv.Error:
            return SampleError("csv_invalid")
        except SampleError as error:
            return error

    def _checked(self, columns: Sequence[str]) -> list[str]:
        columns = [column.strip() for column in columns]
        if not all(columns) or len(set(columns)) < len(columns):
            raise InputError(f"{self._path}: columns {', '.join(columns)}: each needs a name of its own")
        return columns

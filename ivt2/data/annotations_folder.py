"""A folder of media files without annotations."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation
from ivt2.errors import InputError


class FolderAnnotations:
    """Every file below a folder, in the order of their paths; hidden ones are passed over, links to folders too.

    Args:
        media_root: the folder.
        name: of the source.
        classes: whether the folders directly in it are classes, numbered in the order of their names; files that lie
            in none of them are then skipped with the reason ``label_missing``.
    """

    def __init__(self, media_root: str, *, name: str, classes: bool = False) -> None:
        self.name = name
        self._root = Path(media_root)
        self._classes = classes

    def __iter__(self) -> Iterator[Annotation | Skipped]:
        """Return an annotation of each file.

        Raises:
            InputError: when the folder cannot be read.
        """
        folders = [file.partition("/")[0] for file in self._files if "/" in file]
        numbers = {folder: number for number, folder in enumerate(sorted(set(folders)))}
        for file in self._files:
            label = file.partition("/")[0] if "/" in file else None
            if not self._classes:
                yield Annotation(file=file)
            elif label is None:
                yield Skipped(self.name, file, "label_missing")
            else:
                yield Annotation(file=file, label=label, class_index=numbers[label])

    def count(self) -> int:
        """Return how many files there are.

        Raises:
            InputError: when the folder cannot be read.
        """
        return len(self._files)

    @cached_property
    def _files(self) -> list[str]:
        def refuse(error: OSError) -> None:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); give a folder of media files")

        found = []
        for folder, folders, files in os.walk(self._root, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = Path(folder).relative_to(self._root)
            found += [(here / name).as_posix() for name in files if not name.startswith(".")]
        return sorted(found)

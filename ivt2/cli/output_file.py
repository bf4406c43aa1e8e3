"""A file that a command writes at its end: whether it can be written is known before the work."""

import os
from pathlib import Path

from ivt2.errors import InputError


def writable(file: Path) -> Path:
    """Make the folder of a file that is to be written later, and return the file.

    Raises:
        InputError: when it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror}); give another output") from error
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(f"{file}: cannot be written; give another output")
    return file

"""Files that must survive power cuts and share a disk with other processes: written whole, synced, locked."""

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a power cut."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file, or the entries of a folder, on the disk before going on."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_all(file: int, parts: Sequence[bytes]) -> None:
    """Write all parts to an open file; the system may take fewer bytes than it was given."""
    size = os.writev(file, parts)
    if size < sum(map(len, parts)):
        rest = memoryview(b"".join(parts))[size:]
        while rest:
            rest = rest[os.write(file, rest) :]


def try_lock(file: int) -> bool:
    """Lock an open file for this process alone; False where another holds a lock on it."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one at a path, and was neither removed nor renamed."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False

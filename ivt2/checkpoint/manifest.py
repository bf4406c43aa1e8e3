"""Folders that are complete, verified and replaced as a whole, or not there at all.

``manifest.json`` is written last and names size and SHA-256 of every other file. A folder is filled under a temporary
name next to its place, flushed to the disk and renamed; a folder that it replaces is set aside first and removed
afterwards.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivt2.data.files import sync
from ivt2.errors import InputError

MANIFEST = "manifest.json"
PREVIOUS = ".previous"
TEMPORARY = ".tmp-"

_CHUNK = 1 << 22
_MAX_JSON_BYTES = 1 << 24  # facts are a few kilobytes

OnBytes = Callable[[int], None]
"""Told how many more bytes were read or written."""


def ignore(_: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class FolderFormat:
    """One kind of folder with a manifest."""

    name: str
    """What the manifest gives as its format."""
    required: frozenset[str]
    """Files that are always there."""
    what: str
    """What such a folder is called in messages."""
    remedy: str
    """What to do when one is damaged."""

    def existing(self, folder: Path) -> Path:
        """The folder, or the one set aside if a writer was killed while it replaced this one.

        Raises:
            InputError: There is neither.
        """
        folder = Path(folder)
        if folder.is_dir():
            return folder
        previous = folder.with_name(folder.name + PREVIOUS)
        if previous.is_dir() and not folder.exists():
            return previous
        kind = f"is a file; an ivt2 {self.what} is a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder}: {kind}; name the folder that holds {MANIFEST}")

    def entries(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Read the manifest: size and SHA-256 by file name.

        Raises:
            InputError: It is missing, damaged or of another format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise InputError(f"{path}: missing, so the {self.what} is incomplete; {self.remedy}")
        manifest = self.read_json(path)
        damaged = InputError(f"{path}: damaged or of another format than '{self.name}'; {self.remedy}")
        if not isinstance(manifest, dict) or set(manifest) != {"format", "files"} or manifest["format"] != self.name:
            raise damaged
        files = manifest["files"]
        if not isinstance(files, dict) or not self.required <= set(files) or MANIFEST in files:
            raise damaged
        for name, entry in files.items():
            if Path(name).name != name or not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
                raise damaged
        return files

    def verify(self, folder: Path) -> None:
        """Compare size and SHA-256 of every file with the manifest.

        Raises:
            InputError: Naming the first file that is missing or damaged.
        """
        for name, expected in self.entries(folder).items():
            self.verify_file(folder / name, expected)

    def verify_file(self, path: Path, expected: Mapping[str, Any], *, on_bytes: OnBytes = ignore) -> None:
        """Compare one file with its entry in the manifest.

        Raises:
            InputError: The file is missing or differs.
        """
        if not path.is_file():
            raise InputError(f"{path}: missing from the {self.what}; {self.remedy}")
        if path.stat().st_size != expected["bytes"] or sha256(path, on_bytes=on_bytes) != expected["sha256"]:
            raise InputError(f"{path}: damaged (differs from {MANIFEST}); {self.remedy}")

    def seal(self, folder: Path, *, on_bytes: OnBytes = ignore) -> None:
        """Flush every file, then write the manifest and flush it and the directory."""
        files = {}
        for path in sorted(folder.iterdir()):
            sync(path)
            files[path.name] = {"sha256": sha256(path, on_bytes=on_bytes), "bytes": path.stat().st_size}
        write_json(folder / MANIFEST, {"format": self.name, "files": files})
        sync(folder / MANIFEST)
        sync(folder)

    def read_json(self, path: Path, *, max_bytes: int | None = _MAX_JSON_BYTES) -> Any:
        """Read a file of plain data.

        Args:
            path: The file.
            max_bytes: What to refuse, since data takes far more memory than its text; None for a file of one's own.

        Raises:
            InputError: It is not JSON in ASCII, or too long.
        """
        if max_bytes is not None and path.stat().st_size > max_bytes:
            raise InputError(f"{path}: longer than {max_bytes} bytes; {self.remedy}")
        try:
            return json.loads(path.read_text(encoding="ascii"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: damaged (not JSON); {self.remedy}") from error


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside the place of ``folder``, removed at the end unless it was put in its place.

    What killed processes left beside that place is removed first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f"{folder.name}{TEMPORARY}*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}{TEMPORARY}{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary: Path, folder: Path) -> None:
    """Give a sealed folder its name; one that has it already is set aside first and then removed."""
    previous = folder.with_name(folder.name + PREVIOUS)
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        discard(previous)
        folder.rename(previous)
    temporary.rename(folder)
    sync(folder.parent)
    discard(previous)


def discard(folder: Path) -> None:
    """Remove a folder so that a half-removed one cannot be taken for a whole one."""
    folder = Path(folder)
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.is_dir():
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def require_space(folder: Path, needed: int, *, what: str) -> None:
    """Check the room on a disk before anything is written.

    Args:
        folder: A folder on that disk.
        needed: Bytes that will be written.
        what: What needs them.

    Raises:
        InputError: There is less.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"{folder}: {what} needs {needed} bytes and {free} are free; make room on this disk")


def write_json(path: Path, value: Any) -> None:
    """Write plain data in ASCII."""
    path.write_text(json.dumps(value, indent=1), encoding="ascii")


def sha256(path: Path, *, on_bytes: OnBytes = ignore) -> str:
    """Digest of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()

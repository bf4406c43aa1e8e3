"""Training checkpoints as folders that are complete, verified and replaced as a whole, or not there at all.

``model.safetensors`` holds the weights under their own names, ``state.safetensors`` every other tensor,
``state.json`` the rest, ``config.json`` the configuration of the run, ``metadata.json`` a few facts. ``manifest.json``
is written last and names size and SHA-256 of each. The folder is filled under a temporary name next to its place,
flushed to the disk and renamed; a folder that it replaces is set aside first and removed afterwards.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ivt2.checkpoint.codec import decode, encode
from ivt2.checkpoint.tensors import read_tensors, shapes_in, write_tensors
from ivt2.errors import InputError

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
TENSORS = "state.safetensors"
STATE = "state.json"
CONFIG = "config.json"
METADATA = "metadata.json"
FORMAT = "ivt2 checkpoint 1"
PREVIOUS = ".previous"
TEMPORARY = ".tmp-"

_CHUNK = 1 << 22
_LOG = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, state: dict[str, Any], *, config: Mapping[str, Any] | None, metadata: Mapping[str, Any]
) -> None:
    """Write a training state as a folder, atomically; what stood there before goes only after this is complete.

    Args:
        folder: Where the checkpoint shall stand; a checkpoint of that name is replaced.
        state: What ``codec.encode`` can store; the tensors under ``state["state_dict"]`` are the weights.
        config: Configuration of the run as plain data, or None.
        metadata: Plain facts to keep beside it, for instance step and epoch; ``saved_unix_s`` is added.

    Raises:
        TypeError: The state holds something that cannot be stored; the message names the place.
        InputError: There is not enough room on the disk.
        OSError: Writing failed; an older checkpoint of this name still stands.
    """
    document, weights, tensors = encode(state)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f"{folder.name}{TEMPORARY}*"):  # a killed process left it
        shutil.rmtree(stale, ignore_errors=True)
    _require_space(folder.parent, [*weights.values(), *tensors.values()])
    temporary = folder.with_name(f"{folder.name}{TEMPORARY}{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        write_tensors(temporary / MODEL, weights)
        write_tensors(temporary / TENSORS, tensors)
        _write_json(temporary / STATE, document)
        if config is not None:
            _write_json(temporary / CONFIG, config)
        _write_json(temporary / METADATA, {**metadata, "saved_unix_s": time.time()})
        _seal(temporary)
        _require_names(temporary, weights, tensors)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint that ``save_checkpoint`` wrote, after every byte of it agreed with the manifest.

    Args:
        folder: The checkpoint. If a writer was killed while it replaced this folder, the one set aside is read.

    Returns:
        The state, equal to what was saved; tensors are on the CPU.

    Raises:
        InputError: Not a checkpoint, or damaged: the message names the file.
    """
    folder = _existing(Path(folder))
    verify(folder)
    document = _read_json(folder / STATE)
    try:
        state = decode(document, read_tensors(folder / MODEL), read_tensors(folder / TENSORS))
    except KeyError as error:
        raise InputError(f"{folder / STATE}: unknown entry {error}; read it with the release that wrote it") from error
    if not isinstance(state, dict):
        raise InputError(f"{folder / STATE}: not a training state; choose another checkpoint")
    return state


def verify(folder: Path) -> None:
    """Compare size and SHA-256 of every file with the manifest.

    Raises:
        InputError: Naming the first file that is missing or damaged.
    """
    for name, expected in _manifest(folder).items():
        verify_file(folder / name, expected)


def verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    """Compare one file with its entry in the manifest.

    Raises:
        InputError: The file is missing or differs.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing from the checkpoint; use an older checkpoint")
    if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
        raise InputError(f"{path}: damaged (differs from {MANIFEST}); use an older checkpoint")


def newest_valid(folder: Path) -> Path | None:
    """Find the checkpoint that was saved last among those inside a folder that verify.

    Args:
        folder: Directory of checkpoints; it need not exist.

    Returns:
        The checkpoint, or None where no valid one stands. Damaged ones are passed over with a warning.
    """
    folders = [path.parent for path in Path(folder).glob(f"*/{MANIFEST}") if TEMPORARY not in path.parent.name]
    for candidate in sorted(folders, key=_saved_unix_s, reverse=True):
        try:
            verify(candidate)
        except InputError as error:
            _LOG.warning("passed over: %s", error)
            continue
        return candidate
    return None


def discard(folder: Path) -> None:
    """Remove a checkpoint so that a half-removed one cannot be taken for a whole one."""
    folder = Path(folder)
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.is_dir():
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def fingerprint(folder: Path) -> str:
    """SHA-256 of the manifest: one name for all bytes of a checkpoint."""
    return _sha256(_existing(Path(folder)) / MANIFEST)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read the facts that were saved beside a checkpoint, after checking the file.

    Raises:
        InputError: Not a checkpoint, or the file is damaged.
    """
    folder = _existing(Path(folder))
    verify_file(folder / METADATA, _manifest(folder)[METADATA])
    return dict(_read_json(folder / METADATA))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights alone, from a checkpoint or from a safetensors file.

    Raises:
        InputError: The file is missing, damaged or of another format.
    """
    path = Path(path)
    if path.is_file():
        return read_tensors(path)
    folder = _existing(path)
    verify_file(folder / MODEL, _manifest(folder)[MODEL])
    return read_tensors(folder / MODEL)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the weights by their names, without reading the weights.

    Raises:
        InputError: Not a checkpoint, or of another format.
    """
    folder = _existing(Path(folder))
    _manifest(folder)
    if not (folder / MODEL).is_file():
        raise InputError(f"{folder / MODEL}: missing from the checkpoint; use an older checkpoint")
    return shapes_in(folder / MODEL)


def _existing(folder: Path) -> Path:
    if folder.is_dir():
        return folder
    previous = folder.with_name(folder.name + PREVIOUS)
    if previous.is_dir() and not folder.exists():
        return previous
    kind = "is a file; an ivt2 checkpoint is a folder" if folder.exists() else "does not exist"
    raise InputError(f"{folder}: {kind}; name the folder that holds {MANIFEST}")


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{path}: missing, so the checkpoint is incomplete; use an older checkpoint")
    manifest = _read_json(path)
    damaged = InputError(f"{path}: damaged or of another format than '{FORMAT}'; use an older checkpoint")
    if not isinstance(manifest, dict) or set(manifest) != {"format", "files"} or manifest["format"] != FORMAT:
        raise damaged
    files = manifest["files"]
    if not isinstance(files, dict) or not {MODEL, TENSORS, STATE, METADATA} <= set(files) or MANIFEST in files:
        raise damaged
    for name, entry in files.items():
        if Path(name).name != name or not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
            raise damaged
    return files


def _seal(folder: Path) -> None:
    """Flush every file, then write the manifest and flush it and the directory."""
    files = {}
    for path in sorted(folder.iterdir()):
        _flush(path)
        files[path.name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    _write_json(folder / MANIFEST, {"format": FORMAT, "files": files})
    _flush(folder / MANIFEST)
    _flush(folder)


def _require_names(folder: Path, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Read the headers back: the new checkpoint must be readable before an older one may go."""
    if set(shapes_in(folder / MODEL)) != set(weights) or set(shapes_in(folder / TENSORS)) != set(tensors):
        raise OSError(f"{folder}: the tensors read back are not those written")


def _put_in_place(temporary: Path, folder: Path) -> None:
    previous = folder.with_name(folder.name + PREVIOUS)
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        discard(previous)
        folder.rename(previous)
    temporary.rename(folder)
    _flush(folder.parent)
    discard(previous)


def _require_space(folder: Path, tensors: list[Tensor]) -> None:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"{folder}: a checkpoint needs {needed} bytes and {free} are free; make room on this disk")


def _saved_unix_s(folder: Path) -> float:
    try:
        return float(_read_json(folder / METADATA)["saved_unix_s"])
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return -1.0  # damaged: verified last, and then reported


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="ascii")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="ascii"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: damaged (not JSON); use an older checkpoint") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

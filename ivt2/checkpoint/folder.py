"""Training checkpoints as folders that are complete, verified and replaced as a whole, or not there at all.

``model.safetensors`` holds the weights under their own names, ``state.safetensors`` every other tensor,
``state.json`` the rest, ``config.json`` the configuration of the run, ``metadata.json`` a few facts. How the folder is
sealed with ``manifest.json`` and put in its place: ``ivt2.checkpoint.manifest``.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ivt2.checkpoint.codec import decode, encode
from ivt2.checkpoint.manifest import (
    MANIFEST,
    TEMPORARY,
    FolderFormat,
    put_in_place,
    require_space,
    sha256,
    temporary_folder,
    write_json,
)
from ivt2.checkpoint.tensors import read_tensors, shapes_in, write_tensors
from ivt2.errors import InputError

MODEL = "model.safetensors"
TENSORS = "state.safetensors"
STATE = "state.json"
CONFIG = "config.json"
METADATA = "metadata.json"
FORMAT = FolderFormat(
    name="ivt2 checkpoint 1",
    required=frozenset({MODEL, TENSORS, STATE, METADATA}),
    what="checkpoint",
    remedy="use an older checkpoint",
)

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
    with temporary_folder(folder) as temporary:
        tensors_of_all = [*weights.values(), *tensors.values()]
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of_all)
        require_space(folder.parent, needed, what="a checkpoint")
        write_tensors(temporary / MODEL, weights)
        write_tensors(temporary / TENSORS, tensors)
        write_json(temporary / STATE, document)
        if config is not None:
            write_json(temporary / CONFIG, config)
        write_json(temporary / METADATA, {**metadata, "saved_unix_s": time.time()})
        FORMAT.seal(temporary)
        _require_names(temporary, weights, tensors)
        put_in_place(temporary, folder)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint that ``save_checkpoint`` wrote, after every byte of it agreed with the manifest.

    Args:
        folder: The checkpoint. If a writer was killed while it replaced this folder, the one set aside is read.

    Returns:
        The state, equal to what was saved; tensors are on the CPU.

    Raises:
        InputError: Not a checkpoint, or damaged: the message names the file.
    """
    folder = FORMAT.existing(Path(folder))
    verify(folder)
    document = FORMAT.read_json(folder / STATE, max_bytes=None)
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
    FORMAT.verify(folder)


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


def fingerprint(folder: Path) -> str:
    """SHA-256 of the manifest: one name for all bytes of a checkpoint."""
    return sha256(FORMAT.existing(Path(folder)) / MANIFEST)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read the facts that were saved beside a checkpoint, after checking the file.

    Raises:
        InputError: Not a checkpoint, or the file is damaged.
    """
    folder = FORMAT.existing(Path(folder))
    FORMAT.verify_file(folder / METADATA, FORMAT.entries(folder)[METADATA])
    return dict(FORMAT.read_json(folder / METADATA))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights alone, from a checkpoint or from a safetensors file.

    Raises:
        InputError: The file is missing, damaged or of another format.
    """
    path = Path(path)
    if path.is_file():
        return read_tensors(path)
    folder = FORMAT.existing(path)
    FORMAT.verify_file(folder / MODEL, FORMAT.entries(folder)[MODEL])
    return read_tensors(folder / MODEL)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the weights by their names, without reading the weights.

    Raises:
        InputError: Not a checkpoint, or of another format.
    """
    folder = FORMAT.existing(Path(folder))
    FORMAT.entries(folder)
    if not (folder / MODEL).is_file():
        raise InputError(f"{folder / MODEL}: missing from the checkpoint; use an older checkpoint")
    return shapes_in(folder / MODEL)


def _require_names(folder: Path, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Read the headers back: the new checkpoint must be readable before an older one may go."""
    if set(shapes_in(folder / MODEL)) != set(weights) or set(shapes_in(folder / TENSORS)) != set(tensors):
        raise OSError(f"{folder}: the tensors read back are not those written")


def _saved_unix_s(folder: Path) -> float:
    try:
        return float(FORMAT.read_json(folder / METADATA)["saved_unix_s"])
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return -1.0  # damaged: verified last, and then reported

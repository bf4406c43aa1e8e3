"""Tensors in safetensors files, with tied tensors stored once."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ivt2.errors import InputError

ALIASES = "aliases"

_Item = TypeVar("_Item")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name; names of one and the same tensor share one entry.

    The values of a non-contiguous tensor are stored in its logical order, so shape, dtype and values come back, not
    the strides.

    Args:
        path: File to write; an existing one is overwritten.
        tensors: On any device, of a dtype that safetensors knows.

    Raises:
        OSError: The file cannot be written.
    """
    aliases: dict[str, str] = {}
    stored: dict[str, Tensor] = {}
    first_name: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        identity = _identity(tensor)
        if tensor.numel() and identity in first_name:
            aliases[name] = first_name[identity]
            continue
        first_name[identity] = name
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in storages:  # another view of a stored buffer
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        stored[name] = value
    # One entry only: the library writes several in random order, and equal tensors should give equal bytes.
    try:
        safetensors.torch.save_file(stored, path, metadata={ALIASES: json.dumps(aliases)})
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file to the CPU; tied names give the same tensor object.

    Raises:
        InputError: The file is not in the safetensors format.
    """
    return _read(path, lambda file, name: file.get_tensor(name))


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a file by their names, read from its header alone.

    Raises:
        InputError: The file is not in the safetensors format.
    """
    return _read(path, lambda file, name: tuple(file.get_slice(name).get_shape()))


def _read(path: Path, get: Callable[[Any, str], _Item]) -> dict[str, _Item]:
    """What ``get`` gives for each name, tied ones included."""
    again = "fetch or write it again"
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            aliases = json.loads((file.metadata() or {}).get(ALIASES, "{}"))
            items = {name: get(file, name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); {again}") from error
    if not isinstance(aliases, dict) or not all(isinstance(one, str) and one in items for one in aliases.values()):
        raise InputError(f"{path}: not a readable safetensors file (tied names of no tensor); {again}")
    return items | {name: items[target] for name, target in aliases.items()}


def _identity(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, torch.Size(tensor.shape), tensor.stride())

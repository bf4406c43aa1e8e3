"""Strict loading of weights into a network."""

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from ivt2.checkpoint.difference import describe_difference, shorten
from ivt2.checkpoint.folder import newest_valid, read_shapes, read_weights
from ivt2.checkpoint.manifest import MANIFEST
from ivt2.errors import InputError


def load_weights(module: nn.Module, path: Path, *, prefix: str = "") -> None:
    """Load weights, all of them and nothing else.

    Args:
        module: Network to fill in place; its dtypes stay.
        path: Checkpoint folder or safetensors file.
        prefix: Part of the file to take, for instance ``"model."`` for the network inside a training module; it is
            cut off, and keys that do not start with it are left out.

    Raises:
        InputError: Naming the file and which weights are missing, unexpected or of another shape.
    """
    stored = read_weights(path)
    weights = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    _compare(module, path, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    module.load_state_dict(weights)


def require_same_architecture(module: nn.Module, folder: Path, *, prefix: str = "") -> None:
    """Compare names and shapes in a checkpoint with those of a module, before anything is loaded.

    Args:
        module: What the weights shall be loaded into, whole; may be on the meta device.
        folder: Checkpoint folder.
        prefix: As in ``load_weights``.

    Raises:
        InputError: As ``load_weights``.
    """
    shapes = read_shapes(folder)
    _compare(module, folder, {name.removeprefix(prefix): shapes[name] for name in shapes if name.startswith(prefix)})


def find_weights(path: Path, *, what: str) -> Path:
    """Where the numbers are: of a run, in its newest checkpoint that verifies.

    A run whose checkpoints lie in the shards of its ranks has left its weights whole at its end.

    Args:
        path: Converted release, checkpoint of ``train.py``, or folder of a run.
        what: The argument that names it, for messages.

    Raises:
        InputError: There is no such folder.
    """
    checkpoints = path / "checkpoints"
    folder = newest_valid(checkpoints) if checkpoints.is_dir() else path
    if folder is None and (path / "weights" / MANIFEST).is_file():
        folder = path / "weights"
    sharded = folder is None and any(checkpoints.glob("*/.metadata"))
    if sharded or (path / ".metadata").is_file():
        raise InputError(
            f"{what}={path}: holds checkpoints in the shards of its ranks, which only its own engine reads; name the "
            "folder `weights` of the run, which it leaves when it comes to its end"
        )
    if folder is not None and folder.is_dir():
        return folder
    reason = "is a file" if path.is_file() else "does not exist" if folder else "is a run without a whole checkpoint"
    raise InputError(
        f"{what}={path}: {reason}; train it, if it is a run of this package, with "
        f"python train.py experiment={path.name}, or convert a published file with python -m ivt2.cli.convert"
    )


def fill(network: nn.Module, values: Iterable[tuple[str, Tensor]]) -> None:
    """Give a network its weights and buffers, also one on the meta device, where shared ones stay shared.

    Args:
        network: What is in memory keeps its place and its dtype; what is on the meta device is replaced by the value.
        values: By the names of the network's state, of its shapes; those for the meta device belong to the network
            afterwards.

    Raises:
        RuntimeError: Something is still on the meta device: no value has its name.
    """
    targets: dict[str, Tensor] = network.state_dict(keep_vars=True)
    made: dict[int, Tensor] = {}  # by the tensor on the meta device that it replaces
    for name, value in values:
        target = targets[name]
        if target.is_meta:
            made.setdefault(id(target), _like(target, value))
            owner, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(owner), leaf, made[id(target)])
        else:
            with torch.no_grad():
                target.copy_(value)
    remaining = [name for name, tensor in chain(network.named_parameters(), network.named_buffers()) if tensor.is_meta]
    if remaining:
        raise RuntimeError(f"{shorten('still on the meta device', remaining)}: build these buffers in memory")


def _like(target: Tensor, value: Tensor) -> Tensor:
    """A new tensor as what stands in the network: as a parameter or not."""
    return nn.Parameter(value, requires_grad=target.requires_grad) if isinstance(target, nn.Parameter) else value


def _compare(module: nn.Module, path: Path, stored: Mapping[str, tuple[int, ...]]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected]
    mismatched = [
        f"{name} {list(stored[name])} here {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name] != shape
    ]
    if missing or unexpected or mismatched:
        raise InputError(
            f"{path}: checkpoint of another architecture: {describe_difference(missing, unexpected, mismatched)}; "
            "use the configuration that it was trained with"
        )

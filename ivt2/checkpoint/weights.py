"""Strict loading of weights into a network."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ivt2.checkpoint.difference import describe_difference
from ivt2.checkpoint.folder import read_shapes, read_weights
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


def require_same_architecture(module: nn.Module, folder: Path) -> None:
    """Compare names and shapes in a checkpoint with those of a module, before anything is loaded.

    Args:
        module: What the weights shall be loaded into, whole.
        folder: Checkpoint folder.

    Raises:
        InputError: As ``load_weights``.
    """
    _compare(module, folder, read_shapes(folder))


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

"""The network of a run of ``train.py``, rebuilt from the configuration that its checkpoint holds.

A configuration in a checkpoint is data of whoever wrote the file. Nothing that it names is looked up or called, except
the networks in ``NETWORKS``, with plain numbers, words and lists as arguments, of the kinds that their constructors
state. They are built without memory first and compared with what the file holds.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from ivt2.checkpoint.folder import CONFIG, FORMAT, read_shapes, read_weights
from ivt2.checkpoint.weights import fill, require_same_architecture
from ivt2.errors import InputError
from ivt2.models.bert import Bert
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.stage2 import Stage2Model

NETWORKS: Mapping[str, type[nn.Module]] = {
    f"{network.__module__}.{network.__qualname__}": network for network in (Bert, InternVideo2, Stage2Model)
}
"""Networks that a training checkpoint may hold, by the name that a configuration gives them."""

PREFIX = "model."
"""Where a training module keeps its network."""

_OWN = "fill your own network with ivt2.checkpoint.load_weights"

Network = TypeVar("Network", bound=nn.Module)


def load_trained(folder: Path) -> Stage2Model:
    """Rebuild and fill the network of a stage-2 training checkpoint, in float32 on the CPU.

    Memory is taken for nothing but weights that the checkpoint really holds; what else a run needs is not read.

    Args:
        folder: A checkpoint of ``train.py``, such as ``outputs/<run>/checkpoints/last.ckpt``.

    Raises:
        InputError: Configuration or weights are damaged, the configuration does not describe a stage-2 model made of
            ``NETWORKS``, or the weights are not exactly those of that model.
    """
    folder = FORMAT.existing(Path(folder))
    path = folder / CONFIG
    entries = FORMAT.entries(folder)
    if CONFIG not in entries:
        raise InputError(f"{path}: missing, so the network is unknown; {_OWN}")
    FORMAT.verify_file(path, entries[CONFIG])
    node = FORMAT.read_json(path)
    for key in ("module", "model"):
        node = node.get(key) if isinstance(node, dict) else None
    _require_depth(node, len(read_shapes(folder)), f"{path}: module.model")
    with torch.device("meta"):
        network = _build(node, Stage2Model, f"{path}: module.model")
    require_same_architecture(network, folder, prefix=PREFIX)
    weights = read_weights(folder)
    fill(network, ((name, weights[PREFIX + name].to(torch.float32, copy=True)) for name in network.state_dict()))
    return network


def _require_depth(node: Any, num_tensors: int, where: str) -> None:
    """Blocks are made one by one, also on the meta device; each of them has weights in the file."""
    for name, part in node.items() if isinstance(node, Mapping) else ():
        depth = part.get("depth") if isinstance(part, Mapping) else None
        if isinstance(depth, int) and depth > num_tensors:
            raise InputError(f"{where}.{name}.depth={depth}: the file holds {num_tensors} tensors; {FORMAT.remedy}")


def _build(node: Any, wanted: type[Network], where: str) -> Network:
    """A network of that class from its description.

    Raises:
        InputError: It describes another one, or gives what the class does not take.
    """
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str) or target not in NETWORKS:
        raise InputError(f"{where} is {target!r}, not a network that can be rebuilt ({', '.join(NETWORKS)})")
    if NETWORKS[target] is not wanted:
        raise InputError(f"{where} describes {NETWORKS[target].__name__}, not {wanted.__name__}; {_OWN}")
    kinds = get_type_hints(wanted.__init__)
    given = {key: value for key, value in node.items() if key != "_target_"}
    parameters = inspect.signature(wanted).parameters
    unknown = [key for key in given if key not in parameters]
    missing = [key for key, one in parameters.items() if one.default is one.empty and key not in given]
    if unknown or missing:
        wrong = f"no argument {unknown[0]!r}" if unknown else f"no value for {missing[0]!r}"
        raise InputError(f"{where} has {wrong}; read it with the release that wrote it")
    arguments = {key: _value(value, kinds[key], f"{where}.{key}") for key, value in given.items()}
    try:
        return wanted(**arguments)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # what absurd numbers lead to
        reason = str(error).splitlines()[0]
        raise InputError(f"{where} describes no possible {wanted.__name__} ({reason}); {FORMAT.remedy}") from error


def _value(value: Any, kind: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return _build(value, kind, where)
    if not _fits(value, kind):
        raise InputError(f"{where} is {str(value)[:60]!r}, which that network does not take; {_OWN}")
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Whether plain data is of the annotated kind."""
    origin, choices = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        return any(_fits(value, choice) for choice in choices)
    if origin is Literal:
        return isinstance(value, str) and value in choices
    if origin is Sequence:
        return isinstance(value, list) and all(_fits(item, choices[0]) for item in value)
    return type(value) is kind or (kind is float and type(value) is int)

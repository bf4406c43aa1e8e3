"""The network of a run of ``train.py``, rebuilt from the configuration that its checkpoint holds.

A configuration in a checkpoint is data of whoever wrote the file. Nothing that it names is looked up or called, except
the networks in ``NETWORKS``, with plain numbers, words and lists as arguments.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ivt2.checkpoint.folder import CONFIG, verify
from ivt2.checkpoint.weights import load_weights
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


def load_trained(folder: Path) -> Stage2Model:
    """Rebuild and fill the network of a stage-2 training checkpoint, in float32 on the CPU.

    Args:
        folder: A checkpoint of ``train.py``, such as ``outputs/<run>/checkpoints/last.ckpt``.

    Raises:
        InputError: The folder is damaged, its configuration does not describe a stage-2 model made of ``NETWORKS``, or
            its weights are not exactly those of that model.
    """
    folder = Path(folder)
    verify(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{path}: missing, so the network is unknown; fill your own with ivt2.checkpoint.load_weights")
    config = json.loads(path.read_text(encoding="ascii"))
    node = config.get("module", {}).get("model") if isinstance(config, dict) else None
    network = _build(node, f"{path}: module.model")
    if not isinstance(network, Stage2Model):
        raise InputError(f"{path}: describes a {type(network).__name__} alone; fill your own with load_weights")
    load_weights(network, folder, prefix=PREFIX)
    return network


def _build(node: Any, where: str) -> nn.Module:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str) or target not in NETWORKS:
        raise InputError(f"{where} is {target!r}, not a network that can be rebuilt ({', '.join(NETWORKS)})")
    network = NETWORKS[target]
    arguments = {key: _value(value, f"{where}.{key}") for key, value in node.items() if key != "_target_"}
    unknown = set(arguments) - set(inspect.signature(network).parameters)
    if unknown:
        raise InputError(f"{where} has no argument {unknown.pop()!r}; read it with the release that wrote it")
    with torch.device("cpu"):
        return network(**arguments)


def _value(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return _build(value, where)
    items = value if isinstance(value, list) else [value]
    if not all(item is None or isinstance(item, bool | int | float | str) for item in items):
        raise InputError(f"{where} must be a number, a word or a list of them")
    return value

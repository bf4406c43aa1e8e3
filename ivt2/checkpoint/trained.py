"""The network of a run of ``train.py``, rebuilt from the configuration that its checkpoint holds.

A configuration in a checkpoint is data of whoever wrote the file. Nothing that it names is looked up or called, except
the networks in ``NETWORKS``, with plain numbers, words and lists as arguments, of the kinds that their constructors
state. They are built without memory first and compared with what the file holds.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from ivt2.checkpoint.folder import CONFIG, FORMAT, read_shapes, read_weights
from ivt2.checkpoint.weights import fill, require_same_architecture
from ivt2.errors import InputError
from ivt2.models.beats import Beats
from ivt2.models.bert import Bert
from ivt2.models.clip import ClipModel
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.llama_text import LlamaText
from ivt2.models.masked_autoencoder import MaskedAutoencoder
from ivt2.models.mobileclip import MobileClipText
from ivt2.models.stage2 import Stage2Model
from ivt2.models.stage2_audio import Stage2AudioVisualModel
from ivt2.models.videomae import VideoMAE
from ivt2.nn.aligning import AligningDecoders


def _name(network: type[nn.Module]) -> str:
    return f"{network.__module__}.{network.__qualname__}"


_WHOLE = (Stage2Model, Stage2AudioVisualModel, ClipModel)

NETWORKS: Mapping[str, type[nn.Module]] = {
    _name(network): network
    for network in (*_WHOLE, AligningDecoders, Beats, Bert, InternVideo2, LlamaText, MobileClipText, VideoMAE)
}
"""Networks that a training checkpoint may hold, by the name that a configuration gives them."""

AUTOENCODER = _name(MaskedAutoencoder)
"""A network of which the encoder alone is rebuilt."""

MAX_PATCHES = 2**17
"""Patches of all frames for which positions are computed rather than read: 128 frames of 32 x 32."""

_OWN = "fill your own network with ivt2.checkpoint.load_weights"

Trained = Stage2Model | ClipModel | InternVideo2 | VideoMAE
Network = TypeVar("Network", bound=nn.Module)


class _Place(NamedTuple):
    """Where a run's configuration describes what it was for, and its weights lie."""

    keys: tuple[str, ...]
    network: type[Trained]


def load_trained(folder: Path, *, student: str | None = None) -> Trained:
    """Rebuild and fill what a run was for, in float32 on the CPU.

    That is the model of stage 2, with sound or without, or of CLIP, and the encoder of a student of stage 1 or of a
    distillation or of a masked autoencoder; decoders, which serve the training alone, are left out. Memory is taken for
    nothing but weights that the checkpoint really holds; what else a run needs is not read.

    Args:
        folder: A checkpoint of ``train.py``, such as ``outputs/<run>/checkpoints/last.ckpt``.
        student: Name of the student in a distillation of several.

    Raises:
        InputError: Configuration or weights are damaged, the configuration does not describe a network made of
            ``NETWORKS``, the weights are not exactly those of that network, or there is no such student.
    """
    folder = FORMAT.existing(Path(folder))
    path = folder / CONFIG
    entries = FORMAT.entries(folder)
    if CONFIG not in entries:
        raise InputError(f"{path}: missing, so the network is unknown; {_OWN}")
    FORMAT.verify_file(path, entries[CONFIG])
    node = _step(FORMAT.read_json(path), "module")
    place = _find(node, student, folder)
    for key in place.keys:
        node = _step(node, key)
    where, prefix = f"{path}: module.{'.'.join(place.keys)}", f"{'.'.join(place.keys)}."
    shapes = [shape for name, shape in read_shapes(folder).items() if name.startswith(prefix)]
    _require_depth(node, len(shapes), where)
    _require_table(node, max((size for shape in shapes for size in shape), default=0), where)
    with torch.device("meta"):
        network = _build(node, place.network, where)
    require_same_architecture(network, folder, prefix=prefix)
    weights = read_weights(folder)
    fill(network, ((name, weights[prefix + name].to(torch.float32, copy=True)) for name in network.state_dict()))
    return network


def _step(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, Mapping) else None


def _find(module: Any, student: str | None, folder: Path) -> _Place:
    """What a training module is for.

    Raises:
        InputError: It has several students and none is named, or not the named one.
    """
    students = _step(module, "students")
    names = list(students) if isinstance(students, Mapping) else []
    if student not in (names or [None]) and (student is not None or len(names) > 1):
        remedy = f"choose student={' or '.join(names)}" if names else "leave student out"
        raise InputError(f"{folder}: student={student} is none of this run's; {remedy}")
    if names:
        return _Place(("students", student or names[0], "encoder"), InternVideo2)
    if _step(module, "student") is not None:
        return _Place(("student", "encoder"), InternVideo2)
    target = _step(_step(module, "model"), "_target_")
    if target == AUTOENCODER:
        return _Place(("model", "encoder"), VideoMAE)
    return _Place(("model",), next((network for network in _WHOLE if target == _name(network)), Stage2Model))


def _require_table(node: Any, widest: int, where: str) -> None:
    """VideoMAE computes its positions in memory, also on the meta device, before widths are compared with the file's.

    Raises:
        InputError: They would be more than a clip has, or wider than anything in the file.
    """
    sizes = [_step(node, key) for key in ("num_frames", "image_size", "patch_size", "embed_dim")]
    if _step(node, "_target_") != _name(VideoMAE) or not all(type(size) is int and size > 0 for size in sizes):
        return
    num_frames, image_size, patch_size, embed_dim = sizes
    if num_frames * (image_size // patch_size) ** 2 > MAX_PATCHES or embed_dim > widest:
        raise InputError(
            f"{where}: num_frames={num_frames}, image_size={image_size} and embed_dim={embed_dim} are not those of the "
            f"weights; {FORMAT.remedy}"
        )


def _require_depth(node: Any, num_tensors: int, where: str) -> None:
    """Blocks are made one by one, also on the meta device; each of them has weights in the file."""
    parts = {f".{name}": part for name, part in node.items()} if isinstance(node, Mapping) else {}
    for name, part in {"": node, **parts}.items():
        for key in ("depth", "num_layers"):
            depth = _step(part, key)
            if isinstance(depth, int) and depth > num_tensors:
                raise InputError(f"{where}{name}.{key}={depth}: the file holds {num_tensors} tensors; {FORMAT.remedy}")


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
    for network in get_args(kind) or (kind,):
        if _is_network(network) and (kind is network or _step(value, "_target_") == _name(network)):
            return _build(value, network, where)
    if not _fits(value, kind):
        raise InputError(f"{where} is {str(value)[:60]!r}, which that network does not take; {_OWN}")
    return value


def _is_network(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module)


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

"""Split a nested training state into plain JSON and named tensors, and put it together again, without pickle.

Plain JSON stands for itself; every other type is an object with the key ``"$"`` that names the type. What the table
below does not know is refused with its place in the state, so nothing is lost or changed silently.
"""

import base64
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path, PosixPath, WindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

TAG = "$"
WEIGHTS = "state_dict"
"""Key of the training state that holds the network's weights; its tensors keep their names in their own file."""

STORABLE_DTYPES = frozenset({
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
})


def encode(state: Any) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """Take the tensors out of a nested state.

    Args:
        state: Nested dicts (any storable key), lists, tuples, numbers, strings, bytes, None, paths, tensors, numpy
            arrays and scalars, ``torch.dtype``, ``torch.device``, ``torch.Size``.

    Returns:
        What remains as JSON data; the weights (tensors directly under ``state_dict``) by their names; all other
        tensors by their path in the state.

    Raises:
        TypeError: With the path inside the state, at the first value of another type.
    """
    encoder = _Encoder()
    document = encoder.encode(state, ())
    return document, encoder.weights, encoder.tensors


def decode(document: Any, weights: dict[str, Tensor], tensors: dict[str, Tensor]) -> Any:
    """Undo ``encode``.

    Raises:
        KeyError: A tensor or a type name is not known.
    """
    if isinstance(document, list):
        return [decode(item, weights, tensors) for item in document]
    if not isinstance(document, dict):
        return document
    if TAG not in document:
        return {key: decode(value, weights, tensors) for key, value in document.items()}
    references = {"weight": weights, "tensor": tensors, "ndarray": tensors}
    tag, value = document[TAG], document["value"]
    if tag in references:
        tensor = references[tag][value]
        return tensor.numpy() if tag == "ndarray" else tensor
    return _DECODERS[tag](decode(value, weights, tensors))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe(path: Sequence[object]) -> str:
    return "state" + "".join(f"[{part!r}]" for part in path)


def _numpy_scalar(parts: list[Any]) -> Any:
    return np.dtype(parts[0]).type(parts[1])


_DTYPES = {_dtype_name(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

_DECODERS: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "ordered_dict": OrderedDict,
    "counter": lambda pairs: Counter(dict(pairs)),
    "tuple": tuple,
    "size": torch.Size,
    "float": float,
    "bytes": base64.b64decode,
    "path": Path,
    "dtype": _DTYPES.__getitem__,
    "device": torch.device,
    "numpy": _numpy_scalar,
}


class _Encoder:
    """Walks a state once and collects its tensors."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        self.by_type: dict[type, Callable[[Any, tuple[object, ...]], Any]] = {
            dict: self._dict,
            OrderedDict: lambda value, path: self._pairs("ordered_dict", value, path),
            Counter: lambda value, path: self._pairs("counter", value, path),
            list: self._list,
            tuple: lambda value, path: {TAG: "tuple", "value": self._list(value, path)},
            torch.Size: lambda value, path: {TAG: "size", "value": self._list(value, path)},
            float: lambda value, _: value if math.isfinite(value) else {TAG: "float", "value": str(value)},
            bytes: lambda value, _: {TAG: "bytes", "value": base64.b64encode(value).decode()},
            PosixPath: lambda value, _: {TAG: "path", "value": str(value)},
            WindowsPath: lambda value, _: {TAG: "path", "value": str(value)},
            torch.dtype: lambda value, _: {TAG: "dtype", "value": _dtype_name(value)},
            torch.device: lambda value, _: {TAG: "device", "value": str(value)},
            Tensor: self._tensor,
            torch.nn.Parameter: self._tensor,
            np.ndarray: self._ndarray,
        }

    def encode(self, value: Any, path: tuple[object, ...]) -> Any:
        if value is None or type(value) in {bool, int, str}:
            return value
        if type(value) in self.by_type:
            return self.by_type[type(value)](value, path)
        if isinstance(value, np.generic):
            return self._numpy_scalar(value, path)
        raise _refuse(path, type(value).__qualname__)

    def _dict(self, value: dict[Any, Any], path: tuple[object, ...]) -> Any:
        if TAG in value or any(type(key) is not str for key in value):
            return self._pairs("dict", value, path)
        return {key: self.encode(item, (*path, key)) for key, item in value.items()}

    def _pairs(self, tag: str, value: dict[Any, Any], path: tuple[object, ...]) -> Any:
        pairs = [[self.encode(key, (*path, key)), self.encode(item, (*path, key))] for key, item in value.items()]
        return {TAG: tag, "value": pairs}

    def _list(self, value: Sequence[Any], path: tuple[object, ...]) -> list[Any]:
        return [self.encode(item, (*path, position)) for position, item in enumerate(value)]

    def _numpy_scalar(self, value: np.generic, path: tuple[object, ...]) -> Any:
        if value.dtype.kind not in "biufU" or (value.dtype.kind == "f" and value.dtype.itemsize > 8):
            raise _refuse(path, f"numpy.{value.dtype}")
        return {TAG: "numpy", "value": [value.dtype.str, self.encode(value.item(), path)]}

    def _ndarray(self, value: np.ndarray[Any, Any], path: tuple[object, ...]) -> Any:
        try:
            tensor = torch.from_numpy(np.array(value, order="C"))
        except (TypeError, ValueError) as error:
            raise _refuse(path, f"numpy array of {value.dtype}") from error
        return {**self._tensor(tensor, path), TAG: "ndarray"}

    def _tensor(self, value: Tensor, path: tuple[object, ...]) -> dict[str, Any]:
        if value.layout != torch.strided or value.device.type == "meta" or value.is_quantized:
            raise _refuse(path, f"{value.layout} tensor on {value.device}")
        if value.dtype not in STORABLE_DTYPES:
            raise _refuse(path, f"tensor of {value.dtype}")
        if len(path) == 2 and path[0] == WEIGHTS and type(path[1]) is str:
            self.weights[path[1]] = value
            return {TAG: "weight", "value": path[1]}
        name = "/".join(map(str, path))
        while name in self.tensors:  # keys 0 and "0" of one dict
            name += "~"
        self.tensors[name] = value
        return {TAG: "tensor", "value": name}


def _refuse(path: tuple[object, ...], what: str) -> TypeError:
    return TypeError(f"{_describe(path)}: a checkpoint cannot store {what}")

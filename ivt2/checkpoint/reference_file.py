"""Published files of weights, opened without running anything that they may contain.

``torch.save`` files are pickles, and a pickle can hold code: torch's weights-only loader builds tensors in plain
containers and refuses everything else. Tensors of zip files stay on the disk until they are used.
"""

import argparse
import hashlib
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import safetensors
import torch
from torch import Tensor

from ivt2.checkpoint.keymaps.keymap import TensorFacts
from ivt2.checkpoint.manifest import OnBytes, sha256
from ivt2.errors import InputError

WRAPPERS = ("module", "model", "state_dict")
"""Entries that hold the weights where a file holds more: DeepSpeed's, the training scripts' and BEATs', Lightning's."""

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as a pickle, before torch 1.6
_STRANGERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with git lfs pull",
    b"<": "a web page, not a file of weights; fetch it with a token that the publisher's terms were accepted with",
    b"\x80": "a pickle that torch.save did not write; it can contain code and was not run; use a file of plain tensors",
}
_AGAIN = "fetch it again"
_CHUNK = 1 << 22
_LOCAL_HEADER = 30

_BROKEN_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error, EOFError)
_BROKEN_PICKLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    OSError,
    struct.error,
)

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _Entry(NamedTuple):
    """Bytes of one member of a zip file, and the CRC-32 they must have."""

    name: str
    start: int
    end: int
    crc: int


class ReferenceFile:
    """Tensors of one file by its own keys; get one with ``open``.

    Source: wrappers as the reference's loading code and the published files have them (DeepSpeed's ``module`` beside
        other entries, ``model``, bare; BEATs' ``cfg`` and ``model``).
    """

    def __init__(
        self,
        path: Path,
        facts: Mapping[str, TensorFacts],
        fetch: Callable[[str], Tensor],
        entries: list[_Entry] | None = None,
    ) -> None:
        self.path, self.facts = path, facts
        self._fetch = fetch
        self._entries = entries

    @classmethod
    def open(cls, path: Path) -> "ReferenceFile":
        """Read names, shapes and dtypes; no weights yet, except from files that torch wrote before version 1.6.

        Args:
            path: What ``torch.save`` or safetensors wrote; the content decides which, not the name.

        Raises:
            InputError: The file is missing, damaged, contains code, or does not hold weights by name.
        """
        path = Path(path)
        head = _head(path)
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            return cls._open_safetensors(path)
        if head.startswith(_ZIP):
            entries = _zip_entries(path)
            weights = _unwrap(path, _unpickle(path, mmap=True))
            return cls(path, _facts(weights), weights.__getitem__, entries)
        if head.startswith(_LEGACY):
            weights = _unwrap(path, _unpickle(path, mmap=False))
            return cls(path, _facts(weights), weights.__getitem__)
        known = next((says for start, says in _STRANGERS.items() if head.startswith(start)), None)
        raise InputError(f"{path}: {known or f'neither a torch.save file nor a safetensors file; {_AGAIN}'}")

    @classmethod
    def _open_safetensors(cls, path: Path) -> "ReferenceFile":
        facts = {}
        try:
            file: Any = safetensors.safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                described = file.get_slice(name)
                facts[name] = TensorFacts(tuple(described.get_shape()), _SAFETENSORS_DTYPES[described.get_dtype()])
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error}); {_AGAIN}") from error
        except KeyError as error:
            raise InputError(f"{path}: holds weights of the unknown dtype {error}; use another file") from error
        if not facts:
            raise InputError(f"{path}: holds no tensors; use another file")
        return cls(path, facts, file.get_tensor)

    def tensor(self, key: str) -> Tensor:
        """One tensor of the file by its own key; it is a view of the file, not to be written into."""
        tensor: Tensor = self._fetch(key)
        return tensor

    def digest(self, on_bytes: OnBytes) -> str:
        """SHA-256 of the file; in the same pass the CRC-32 of each member, where it is a zip file.

        Args:
            on_bytes: Told how many more bytes were read.

        Raises:
            InputError: A member is damaged.
        """
        if self._entries is None:
            return sha256(self.path, on_bytes=on_bytes)
        digest, members = hashlib.sha256(), _Checksums(self._entries)
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                members.update(memoryview(chunk))
                on_bytes(len(chunk))
        for entry in members.damaged():
            raise InputError(f"{self.path}: damaged (checksum of {entry.name}); {_AGAIN}")
        return digest.hexdigest()


class _Checksums:
    """CRC-32 of the members of a zip file that is read from its beginning to its end."""

    def __init__(self, entries: list[_Entry]) -> None:
        self.entries = entries
        self.crcs = [0] * len(entries)
        self.position = 0
        self.first = 0

    def update(self, chunk: memoryview) -> None:
        """Take the next bytes of the file."""
        start, end = self.position, self.position + len(chunk)
        for index in range(self.first, len(self.entries)):
            entry = self.entries[index]
            if entry.start >= end:
                break
            self.crcs[index] = zlib.crc32(chunk[max(entry.start - start, 0) : entry.end - start], self.crcs[index])
            self.first = index if entry.end > end else index + 1
        self.position = end

    def damaged(self) -> Iterator[_Entry]:
        """Members whose bytes are others than those written."""
        return (entry for entry, crc in zip(self.entries, self.crcs, strict=True) if crc != entry.crc)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; name the file in it that holds the weights") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of the file") from error
    if not head:
        raise InputError(f"{path}: is empty; {_AGAIN}")
    return head


def _zip_entries(path: Path) -> list[_Entry]:
    """Where the members of a zip file lie; the one that is unpickled is checked here.

    Raises:
        InputError: The file is truncated, damaged, or a zip file of something else.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
            entries = [_entry(file, member) for member in members]
            pickles = [entry for entry in entries if entry.name.count("/") == 1 and entry.name.endswith("/data.pkl")]
            sound = [_is_sound(file, entry) for entry in pickles]
    except _BROKEN_ZIP as error:
        raise InputError(f"{path}: truncated or damaged ({error}); {_AGAIN}") from error
    if not pickles:
        raise InputError(f"{path}: a zip file, but not one that torch.save wrote; give the file of the weights")
    if any(entry.name.endswith("/constants.pkl") for entry in entries):
        raise InputError(f"{path}: contains code (TorchScript), which was not run; give a state dict")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise InputError(f"{path}: was compressed after torch.save wrote it; use the file as it was published")
    if not all(sound):
        raise InputError(f"{path}: damaged (checksum of {pickles[0].name}); {_AGAIN}")
    if any(before.end > after.start for before, after in pairwise(entries)):
        raise InputError(f"{path}: damaged (its members overlap); {_AGAIN}")
    return entries


def _is_sound(file: BinaryIO, entry: _Entry) -> bool:
    file.seek(entry.start)
    return zlib.crc32(file.read(entry.end - entry.start)) == entry.crc


def _entry(file: BinaryIO, member: zipfile.ZipInfo) -> _Entry:
    """The local header says where the bytes start; torch reads it in the same way."""
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER)
    len_name, len_extra = struct.unpack("<HH", header[26:30])
    start = member.header_offset + _LOCAL_HEADER + len_name + len_extra
    return _Entry(member.filename, start, start + member.compress_size, member.CRC)


def _unpickle(path: Path, *, mmap: bool) -> Any:
    """Read the containers of a file; arguments of a training script are the one class beside torch's that may occur.

    Raises:
        InputError: The file asks for other classes or functions, or cannot be read.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except _BROKEN_PICKLE as error:
        asked = re.search(r"(?:GLOBAL|function) (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and asked:
            raise InputError(
                f"{path}: contains code ({asked[1]}), which was not run, and is refused; use a file of plain tensors"
            ) from error
        said = str(error).rpartition("WeightsUnpickler error:")[2].strip()  # before it torch advises to run the code
        reason = said.splitlines()[0] if said else type(error).__name__
        raise InputError(f"{path}: cannot be read as weights ({reason}); {_AGAIN}") from error


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """Take the weights out of what was saved around them.

    Raises:
        InputError: There are none, or it is not clear which they are.
    """
    found = content
    while isinstance(found, dict) and not any(isinstance(value, Tensor) for value in found.values()):
        inner = [name for name in WRAPPERS if isinstance(found.get(name), dict) and found[name]]
        if len(inner) != 1:
            held = f"both {' and '.join(inner)}" if inner else _shown(found)
            raise InputError(f"{path}: holds {held}, so where its weights are is not clear; save them alone")
        found = found[inner[0]]
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}, not weights by name; give a state dict")
    for name, value in found.items():
        if isinstance(name, str) and isinstance(value, Tensor) and _is_plain(value):
            continue
        raise InputError(
            f"{path}: entry {name!r} is a {_kind(value)}, not a plain tensor under a name; save the weights alone"
        )
    return found


def _is_plain(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return strided and not _is_expanded(tensor)


def _is_expanded(tensor: Tensor) -> bool:
    """Whether it repeats stored values: a few bytes of a file could stand for more than there is memory."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.layout == torch.strided and _is_expanded(value):
        return f"tensor {list(value.shape)} that repeats fewer values"
    return f"{value.layout} tensor on {value.device}"


def _shown(content: dict[Any, Any]) -> str:
    names = ", ".join(str(name) for name in list(content)[:5])
    return f"no tensors, only {names}" if content else "no tensors"


def _facts(weights: Mapping[str, Tensor]) -> dict[str, TensorFacts]:
    return {name: TensorFacts(tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}

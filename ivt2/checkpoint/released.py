"""Converted releases: a folder of safetensors shards with its facts, read strictly.

``model-00001-of-0000n.safetensors`` and so on hold the weights under our names, ``config.json`` what reading them
needs, ``metadata.json`` where they come from, ``manifest.json`` size and SHA-256 of each. The files say which release
they are, never which class to build: whoever reads them takes the network from the program's own table.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ivt2.checkpoint.difference import describe_difference
from ivt2.checkpoint.keymaps.keymap import TensorFacts, tensor_facts
from ivt2.checkpoint.manifest import MANIFEST, FolderFormat, OnBytes, ignore
from ivt2.checkpoint.reference_file import ReferenceFile
from ivt2.checkpoint.release import Release
from ivt2.checkpoint.weights import fill
from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.ops.position import resize_position_table

CONFIG = "config.json"
METADATA = "metadata.json"
FORMAT = FolderFormat(
    name="ivt2 release 1",
    required=frozenset({CONFIG, METADATA}),
    what="release",
    remedy="convert or fetch it again",
)

_NOTHING = TensorFacts((), torch.float32)


def shard_name(number: int, num_shards: int) -> str:
    """File of a shard; numbers start at 1."""
    return f"model-{number:05}-of-{num_shards:05}.safetensors"


@dataclass(frozen=True)
class ReleasedFacts:
    """What ``config.json`` says, plain values alone."""

    release: str
    """Name in the table of releases."""
    num_frames: int
    """Temporal positions of the position tables."""
    image_size: int
    """Side of a frame in pixels that they were made for."""
    dim: int
    modalities: list[str]
    tokenizer: str | None
    key_maps: dict[str, int]
    """Versions of the key maps that gave the names, by the part and the map's name: ``"model: stage2"``."""
    position_tables: list[str]
    """Names of the learned tables that can be resized."""

    def to_json(self) -> dict[str, Any]:
        """Content of ``config.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, path: Path, content: Any) -> "ReleasedFacts":
        """Take the facts from the content of a file, which may come from anywhere.

        Args:
            path: The file, for messages.
            content: What it holds.

        Raises:
            InputError: An entry is unknown, missing or of another type.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(content, dict):
            raise InputError(f"{path}: not the facts of a release; {FORMAT.remedy}")
        unknown = sorted(set(content) - set(names))
        if unknown:
            raise InputError(
                f"{path}: unknown entry {', '.join(unknown)}; this file holds facts alone and nothing is built from "
                f"it; {FORMAT.remedy}"
            )
        for name in names:
            if name not in content or not _FITS[name](content[name]):
                raise InputError(
                    f"{path}: {name} is {content.get(name, 'missing')!r}, not a fact of a release; {FORMAT.remedy}"
                )
        return cls(**content)

    def require(self, release: Release, folder: Path) -> None:
        """Compare with the release that is expected.

        Raises:
            InputError: The folder is another release, or its names are those of an older or newer key map.
        """
        if self.release != release.name:
            raise InputError(f"{folder}: holds {self.release}, not {release.name}; choose another folder or name")
        sizes = {
            "num_frames": (self.num_frames, release.num_frames),
            "image_size": (self.image_size, release.image_size),
            "dim": (self.dim, release.dim),
        }
        for name, (stored, here) in sizes.items():
            if stored != here:
                raise InputError(f"{folder}: has {name}={stored}, {release.name} {here}; {FORMAT.remedy}")
        versions = key_map_versions(release)
        if self.key_maps != versions:
            raise InputError(
                f"{folder}: was converted with key maps {_listed(self.key_maps)}, this version of ivt2 has "
                f"{_listed(versions)}; convert it again, or remove it where it was loaded by name"
            )


def key_map_versions(release: Release) -> dict[str, int]:
    """Versions of the key maps of a release's parts."""
    return {f"{part.name}: {part.key_map.name}": part.key_map.version for part in release.parts}


def _listed(versions: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "release": lambda value: isinstance(value, str),
    "num_frames": _is_count,
    "image_size": _is_count,
    "dim": _is_count,
    "modalities": _are_words,
    "tokenizer": lambda value: value is None or isinstance(value, str),
    "key_maps": lambda value: isinstance(value, dict) and all(type(version) is int for version in value.values()),
    "position_tables": _are_words,
}


@dataclass(frozen=True)
class ReleasedFolder:
    """A converted release whose every byte agreed with its manifest; get one with ``open``."""

    path: Path
    facts: ReleasedFacts
    metadata: Mapping[str, Any]
    shards: tuple[Path, ...]
    tensors: Mapping[str, TensorFacts]
    """Names, shapes and dtypes of all weights."""
    prefix: str = ""
    """What was cut off these names, see ``part``."""

    @classmethod
    def open(cls, folder: Path, *, release: Release | None = None, on_bytes: OnBytes = ignore) -> "ReleasedFolder":
        """Verify a folder and read everything but the weights.

        Args:
            folder: What ``convert`` wrote.
            release: What it must be; None accepts every release.
            on_bytes: Told how many more bytes were read for verification.

        Raises:
            InputError: The folder is damaged, incomplete, or another release.
        """
        folder = FORMAT.existing(Path(folder))
        facts, metadata = read_facts(folder)
        if release is not None:
            facts.require(release, folder)
        entries = FORMAT.entries(folder)
        shards = _shards(folder, entries)
        for shard in shards:
            _verify_file(shard, entries[shard.name], on_bytes)
        tensors: dict[str, TensorFacts] = {}
        for shard in shards:
            held = ReferenceFile.open(shard).facts
            twice = tensors.keys() & held.keys()
            if twice:
                raise InputError(f"{shard}: holds {min(twice)}, as another shard does; {FORMAT.remedy}")
            tensors.update(held)
        strange = [name for name in facts.position_tables if len(tensors.get(name, _NOTHING).shape) != 3]
        if strange:
            raise InputError(f"{folder / CONFIG}: {strange[0]} is no position table of this release; {FORMAT.remedy}")
        return cls(folder, facts, metadata, shards, tensors)

    def part(self, prefix: str) -> "ReleasedFolder":
        """The weights below a prefix alone, under the names that follow it.

        Args:
            prefix: For instance ``"vision_encoder."``; nothing is left where no name starts with it.
        """
        tensors = {name.removeprefix(prefix): each for name, each in self.tensors.items() if name.startswith(prefix)}
        tables = [name.removeprefix(prefix) for name in self.facts.position_tables if name.startswith(prefix)]
        facts = replace(self.facts, position_tables=tables)
        return replace(self, facts=facts, tensors=tensors, prefix=self.prefix + prefix)

    def compare(self, network: Mapping[str, TensorFacts], *, resizable: bool) -> None:
        """Compare names, shapes and kinds of numbers with those of a network.

        Args:
            network: Names, shapes and dtypes of its state.
            resizable: Whether position tables may have another number of rows.

        Raises:
            InputError: With what is missing, unexpected and of another shape.
        """
        tables = set(self.facts.position_tables) if resizable else set()
        missing = [name for name in network if name not in self.tensors]
        unexpected = [name for name in self.tensors if name not in network]
        mismatched = []
        for name, here in network.items():
            stored = self.tensors.get(name, here)
            if stored.shape != here.shape and not (name in tables and _but_rows(stored.shape) == _but_rows(here.shape)):
                mismatched.append(f"{name} {list(stored.shape)} here {list(here.shape)}")
            elif stored.dtype.is_floating_point != here.dtype.is_floating_point:
                mismatched.append(f"{name} {stored.dtype} here {here.dtype}")
        if missing or unexpected or mismatched:
            raise InputError(
                f"{self.path}: {self.facts.release} does not fit this network: "
                f"{describe_difference(missing, unexpected, mismatched)}; build the network of this release"
            )

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """All weights by name, one shard after the other; they are views of the files, not to be written into."""
        for shard in self.shards:
            file = ReferenceFile.open(shard)
            for name in file.facts:
                if name.startswith(self.prefix):
                    yield name.removeprefix(self.prefix), file.tensor(name)


def read_facts(folder: Path) -> tuple[ReleasedFacts, dict[str, Any]]:
    """Read the two small files of a converted release, after checking them.

    Returns:
        What ``config.json`` and ``metadata.json`` say.

    Raises:
        InputError: Not a converted release, or one of the two is damaged.
    """
    folder = FORMAT.existing(Path(folder))
    entries = FORMAT.entries(folder)
    for name in (CONFIG, METADATA):
        _verify_file(folder / name, entries[name], ignore)
    facts = ReleasedFacts.from_json(folder / CONFIG, FORMAT.read_json(folder / CONFIG))
    metadata = FORMAT.read_json(folder / METADATA)
    if not isinstance(metadata, dict) or metadata.get("release") != facts.release:
        raise InputError(f"{folder / METADATA}: does not speak of {facts.release} as {CONFIG} does; {FORMAT.remedy}")
    return facts, metadata


def load_released(
    folder: Path,
    network: nn.Module,
    *,
    release: Release | None = None,
    prefix: str = "",
    num_frames: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> ReleasedFacts:
    """Fill a network from a converted release: all its weights and buffers, and nothing else.

    Position tables are resized in float32, over time first and then in space, and rounded once.

    Args:
        folder: What ``convert`` wrote.
        network: Filled in place. What is on the meta device is put on ``device``; what is in memory keeps its place
            and its dtype.
        release: What the folder must be; None accepts every release that fits the network.
        prefix: Part of the release to take, for instance ``"vision_encoder."``; it is cut off the names, and weights
            that do not start with it are left out.
        num_frames: Temporal positions of the network's tables; None: as the release has them.
        dtype: Floating-point dtype of weights that were on the meta device; None: as they are stored.
        device: Where those go.

    Raises:
        InputError: The folder is damaged or another release; or weights are missing, unexpected or of another shape.
            Nothing was loaded then.
    """
    opened = ReleasedFolder.open(folder, release=release).part(prefix)
    targets: dict[str, Tensor] = network.state_dict(keep_vars=True)
    frames = opened.facts.num_frames if num_frames is None else num_frames
    opened.compare(tensor_facts(targets), resizable=True)
    resized = {
        name
        for name in opened.facts.position_tables
        if frames != opened.facts.num_frames or opened.tensors[name].shape != tuple(targets[name].shape)
    }
    for name in resized:  # so that a table that cannot be resized is known before anything is loaded
        _require_frames(network, name, frames)
        _resized(opened, name, torch.empty(opened.tensors[name].shape, device="meta"), targets[name], frames)

    def values() -> Iterator[tuple[str, Tensor]]:
        for name, stored in opened.read():
            value = _resized(opened, name, stored.float(), targets[name], frames) if name in resized else stored
            if targets[name].is_meta:
                kept = dtype if dtype is not None and stored.is_floating_point() else stored.dtype
                value = value.to(device, kept, copy=True)
            yield name, value

    fill(network, values())
    return opened.facts


def resize_table(name: str, table: Tensor, shape: tuple[int, ...], *, source_frames: int, num_frames: int) -> Tensor:
    """Bring a learned position table to the shape that a network has.

    Args:
        name: Its last part says what the rows are: ``pos_embed_temporal`` frames, ``pos_embed_spatial`` patches of a
            frame, ``img_pos_embed`` those of an image, otherwise patches frame by frame; a CLS row may stand first.
        table: Of shape [1, rows, width].
        shape: Wanted; another number of rows.
        source_frames: Temporal positions in the table.
        num_frames: Temporal positions wanted.

    Raises:
        InputError: The rows are not those of so many frames.
    """
    kind = name.rpartition(".")[2]
    if kind.endswith("spatial") or kind.startswith("img_"):
        source_frames = num_frames = 1
    if shape[1] == 1 or (tuple(table.shape) == shape and source_frames == num_frames):
        return table
    num_prefix, grid_size = (0, 1) if kind.endswith("temporal") else _layout(shape[1], num_frames)
    if num_prefix + num_frames * grid_size**2 != shape[1]:
        raise InputError(
            f"{name}: the network's {shape[1]} rows are not those of {num_frames} square frames: give the number of "
            "frames that the network was built with"
        )
    return resize_position_table(
        table,
        source_frames=source_frames,
        num_frames=num_frames,
        grid_size=grid_size,
        num_prefix=num_prefix,
    )


def _layout(num_rows: int, num_frames: int) -> tuple[int, int]:
    """CLS rows of a table and side of its grid; what does not add up is left to the caller."""
    for num_prefix in (0, 1):  # at most one of them fits
        grid_size = math.isqrt((num_rows - num_prefix) // num_frames)
        if num_prefix + num_frames * grid_size**2 == num_rows:
            break
    return num_prefix, grid_size


def _shards(folder: Path, entries: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files of weights that the manifest names: all of one series.

    Raises:
        InputError: The manifest names others, or some are missing.
    """
    names = sorted(name for name in entries if name not in FORMAT.required)
    if not names or names != [shard_name(number, len(names)) for number in range(1, len(names) + 1)]:
        raise InputError(f"{folder / MANIFEST}: names other files than those of a release; {FORMAT.remedy}")
    return tuple(folder / name for name in names)


def _verify_file(path: Path, expected: Mapping[str, Any], on_bytes: OnBytes) -> None:
    if path.is_symlink():
        raise InputError(f"{path}: is a link; a release holds its own files; copy the file or {FORMAT.remedy}")
    FORMAT.verify_file(path, expected, on_bytes=on_bytes)


def _but_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:1], *shape[2:]) if len(shape) == 3 else shape


def _require_frames(network: nn.Module, name: str, num_frames: int) -> None:
    """Rows alone do not tell frames from patches: 8 frames of 16 x 16 patches are as many as 2 of 32 x 32."""
    owner = network.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, InternVideo2) and owner.grid_frames != num_frames:
        raise InputError(
            f"num_frames={num_frames}: the network is built for {owner.grid_frames} temporal positions ({name}); give "
            "that number"
        )


def _resized(opened: ReleasedFolder, name: str, table: Tensor, target: Tensor, num_frames: int) -> Tensor:
    frames = opened.facts.num_frames
    return resize_table(name, table, tuple(target.shape), source_frames=frames, num_frames=num_frames)

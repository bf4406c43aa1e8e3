"""Published files become a folder of our own, and a part of it a published file again; values stay bit for bit.

The one change that is made is that of position tables which a file has for another number of frames than the release.
Neither the files nor the folder are ever held in memory as a whole.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ivt2.checkpoint.difference import shorten
from ivt2.checkpoint.keymaps.keymap import Plan, TensorFacts, tensor_facts
from ivt2.checkpoint.manifest import MANIFEST, OnBytes, put_in_place, require_space, temporary_folder, write_json
from ivt2.checkpoint.reference_file import ReferenceFile
from ivt2.checkpoint.release import Part, Release
from ivt2.checkpoint.released import (
    CONFIG,
    FORMAT,
    METADATA,
    ReleasedFacts,
    ReleasedFolder,
    key_map_versions,
    resize_table,
    shard_name,
)
from ivt2.checkpoint.tensors import write_tensors
from ivt2.data.files import sync
from ivt2.errors import InputError

SHARD_BYTES = 2 << 30
"""Size of a shard, at most; one tensor may be larger."""

OnProgress = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are done, and how many there are."""


@runtime_checkable
class _HasPixelStatistics(Protocol):
    """An encoder that normalises pixels; its patch embedding, which does it for the encoder, knows no size."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class _Source:
    """A part of a release with its file, compared with the network but not yet read."""

    part: Part
    file: ReferenceFile
    plan: Plan


def convert(
    release: Release,
    files: Mapping[str, Path],
    output: Path,
    *,
    allow_other_file: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    on_progress: OnProgress | None = None,
) -> Path:
    """Convert the files of a release into a folder, which is complete and verified or not there at all.

    Equal files give equal folders, byte for byte.

    Args:
        release: What the files are.
        files: Path of the file of each part.
        output: Folder to write.
        allow_other_file: Accept files of another size than the published ones, for instance saved again.
        overwrite: Replace a converted release that ``output`` holds.
        shard_bytes: Size of a shard, at most; one tensor may be larger.
        on_progress: Watches the work.

    Returns:
        ``output``.

    Raises:
        InputError: A file is missing, damaged, contains code or does not fit the release; the place is taken or the
            disk too small. Nothing is left behind then.
        OSError: Writing failed.
    """
    output = Path(output)
    _require_place(output, overwrite=overwrite)
    _require_parts(release, files)
    network = _skeleton(release)
    expected = tensor_facts(network.state_dict())
    sources = [_open(part, Path(files[part.name]), expected, allow_other_file) for part in release.parts]
    for source in sources:  # so that a table that cannot be resized is known before the long work
        for name in source.plan.resized:
            blank = torch.empty(_stored(source, name).shape, device="meta")
            _resized(source, name, blank, expected[name].shape, release)
    givers = {name: source for source in sources for name in source.plan.names}
    _require_cover(release, expected, givers)
    written = {name: TensorFacts(facts.shape, _stored(givers[name], name).dtype) for name, facts in expected.items()}
    num_bytes = sum(map(_num_bytes, written.values()))
    require_space(_ground(output), num_bytes, what=f"{release.name} as a folder")
    digests = _check_files(sources, on_progress)
    with temporary_folder(output) as temporary:

        def read(name: str) -> Tensor:
            return _read(givers[name], name, expected[name].shape, release)

        _write_shards(temporary, written, read, shard_bytes, _meter(on_progress, "writing", num_bytes))
        facts = _facts(release, givers)
        write_json(temporary / CONFIG, facts.to_json())
        write_json(temporary / METADATA, _metadata(release, network, sources, digests))
        FORMAT.seal(temporary, on_bytes=_meter(on_progress, "sealing", num_bytes))
        _require_readable(temporary, written, _meter(on_progress, "verifying", num_bytes))
        put_in_place(temporary, output)
    return output


def export(
    folder: Path,
    release: Release,
    part: str,
    output: Path,
    *,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write a part of a converted release as a file that the reference's code reads: a plain dict by ``torch.save``.

    Keys are the reference's, values those of the folder, bit for bit; position tables keep the folder's frames.

    Args:
        folder: What ``convert`` wrote.
        release: What it holds.
        part: Which file of the release.
        output: File to write.
        overwrite: Replace a file of that name.
        on_progress: Watches the work.

    Returns:
        ``output``.

    Raises:
        InputError: The folder is damaged or another release, the release has no such part, the place is taken or the
            disk too small.
        OSError: Writing failed.
    """
    output = Path(output)
    if output.is_dir():
        raise InputError(f"{output}: is a folder; name the file to write")
    if output.exists() and not overwrite:
        raise InputError(f"{output}: is there already; choose another file or set overwrite=true")
    chosen = next((known for known in release.parts if known.name == part), None)
    if chosen is None:
        parts = ", ".join(known.name for known in release.parts)
        raise InputError(f"part={part}: {release.name} has {parts}; choose one of them")
    opened = ReleasedFolder.open(
        folder, release=release, on_bytes=_meter(on_progress, "verifying", _num_stored(folder))
    )
    expected = tensor_facts(_skeleton(release).state_dict())
    opened.compare(expected, resizable=False)
    held = dict(opened.read())
    state = {name: held[name] for name in expected}  # in the order of the reference's own files
    tensors = dict(chosen.key_map.write(state))
    needed = sum(map(_num_bytes, tensor_facts(tensors).values()))
    require_space(_ground(output), needed, what=f"{part} of {release.name} as a file")
    with _temporary_file(output) as temporary:
        torch.save(tensors, temporary)
        sync(temporary)
        written = ReferenceFile.open(temporary)
        written.digest(_meter(on_progress, "checking", temporary.stat().st_size))
        if written.facts != tensor_facts(tensors):
            raise OSError(f"{temporary}: the tensors read back are not those written")
        temporary.replace(output)
        sync(output.parent)
    return output


def _skeleton(release: Release) -> nn.Module:
    """The network without weights."""
    with torch.device("meta"):
        return release.build(release.num_frames, release.image_size)


def _require_place(output: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken, and to replace a folder that holds anything but a release."""
    _ground(output)
    if not output.exists():
        return
    if not overwrite:
        raise InputError(f"{output}: is there already; choose another folder or set overwrite=true")
    try:
        own = {*FORMAT.entries(output), MANIFEST}
    except InputError as error:
        raise InputError(f"{output}: holds something else than a release; choose another folder") from error
    others = sorted(path.name for path in output.iterdir() if path.name not in own)
    if others:
        raise InputError(f"{output}: holds {', '.join(others[:3])} beside a release; choose another folder")


def _ground(place: Path) -> Path:
    """The folder that exists above a place.

    Raises:
        InputError: Nothing can be written in it.
    """
    ground = next(parent for parent in place.absolute().parents if parent.exists())
    if not ground.is_dir() or not os.access(ground, os.W_OK):
        raise InputError(f"{place}: cannot be written, because of {ground}; choose another place")
    return ground


def _require_parts(release: Release, files: Mapping[str, Path]) -> None:
    """Refuse files that the release does not have, or that are not given."""
    names = [part.name for part in release.parts]
    missing, unknown = [name for name in names if name not in files], [name for name in files if name not in names]
    if missing or unknown:
        wanted = ", ".join(f"files.{part.name} ({part.file} of {part.source})" for part in release.parts)
        wrong = [f"files.{name} is missing" for name in missing] + [f"files.{name} is unknown" for name in unknown]
        raise InputError(f"{'; '.join(wrong)}: {release.name} is made of {wanted}")


def _open(part: Part, path: Path, network: Mapping[str, TensorFacts], allow_other_file: bool) -> _Source:  # noqa: FBT001
    if path.is_file() and not allow_other_file and part.num_bytes not in {None, path.stat().st_size}:
        raise InputError(
            f"{path}: has {path.stat().st_size} bytes, the published {part.file} {part.num_bytes}: fetch it again from "
            f"{part.source}, or set allow_other_file=true if you saved it again yourself"
        )
    file = ReferenceFile.open(path)
    return _Source(part, file, part.key_map.plan(network, file.facts, source=str(path)))


def _require_cover(release: Release, expected: Mapping[str, TensorFacts], givers: Mapping[str, _Source]) -> None:
    """The table of releases is wrong when all files fit and a weight is still missing."""
    missing = [name for name in expected if name not in givers]
    if missing:
        raise ValueError(f"{release.name}: its parts leave {shorten('missing', missing)}")


def _check_files(sources: list[_Source], on_progress: OnProgress | None) -> list[str]:
    """Read every byte of the files once, then compare what must be equal in them.

    Returns:
        The SHA-256 of each.
    """
    on_bytes = _meter(on_progress, "checking", sum(source.file.path.stat().st_size for source in sources))
    digests = [source.file.digest(on_bytes) for source in sources]
    for source in sources:
        source.plan.check(source.file.tensor)
    return digests


def _stored(source: _Source, name: str) -> TensorFacts:
    return source.file.facts[source.plan.keys[name]]


def _read(source: _Source, name: str, shape: tuple[int, ...], release: Release) -> Tensor:
    """A weight in the release's shape."""
    tensor = source.plan.read(name, source.file.tensor)
    return _resized(source, name, tensor, shape, release) if name in source.plan.resized else tensor


def _resized(source: _Source, name: str, table: Tensor, shape: tuple[int, ...], release: Release) -> Tensor:
    """A position table with the release's frames and patches."""
    frames = source.part.num_frames or release.num_frames
    try:
        return resize_table(name, table, shape, source_frames=frames, num_frames=release.num_frames)
    except InputError as error:
        raise InputError(f"{source.file.path}: {name}: {error}") from error


def _write_shards(
    folder: Path,
    tensors: Mapping[str, TensorFacts],
    read: Callable[[str], Tensor],
    shard_bytes: int,
    on_bytes: OnBytes,
) -> None:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, facts in tensors.items():
        if shards[-1] and filled + _num_bytes(facts) > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _num_bytes(facts)
    for number, names in enumerate(shards, start=1):
        shard = folder / shard_name(number, len(shards))
        shard.touch()
        mode = shard.stat().st_mode  # the library would let nobody else read it
        write_tensors(shard, dict(_apart((name, read(name)) for name in names)))
        shard.chmod(mode)
        on_bytes(sum(_num_bytes(tensors[name]) for name in names))


def _apart(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Weights that one tensor of a file gives twice become two, so that they stay two when they are trained."""
    seen = set()
    for name, tensor in tensors:
        yield name, tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())


def _facts(release: Release, givers: Mapping[str, _Source]) -> ReleasedFacts:
    return ReleasedFacts(
        release=release.name,
        num_frames=release.num_frames,
        image_size=release.image_size,
        dim=release.dim,
        modalities=list(release.modalities),
        tokenizer=release.tokenizer,
        key_maps=key_map_versions(release),
        position_tables=[name for name, source in givers.items() if source.part.key_map.is_table(name)],
    )


def _metadata(release: Release, network: nn.Module, sources: list[_Source], digests: list[str]) -> dict[str, Any]:
    pixels = {
        name: {"mean": list(module.mean), "std": list(module.std)}
        for name, module in network.named_modules()
        if isinstance(module, _HasPixelStatistics)
    }
    return {
        "release": release.name,
        "title": release.title,
        "tasks": release.tasks,
        "num_frames": release.num_frames,
        "image_size": release.image_size,
        "pixels": pixels,
        "tokenizer": release.tokenizer,
        "modalities": list(release.modalities),
        "parents": [_parent(source, digest) for source, digest in zip(sources, digests, strict=True)],
    }


def _parent(source: _Source, digest: str) -> dict[str, Any]:
    part, plan = source.part, source.plan
    num_bytes = source.file.path.stat().st_size
    return {
        "part": part.name,
        "file": part.file,
        "source": part.source,
        "licence": part.licence,
        "bytes": num_bytes,
        "published_bytes": part.num_bytes,
        "sha256": digest,
        "dtype": sorted({str(_stored(source, name).dtype).removeprefix("torch.") for name in plan.names}),
        "num_frames": part.num_frames,
        "resized": list(plan.resized),
        "dropped": dict(Counter(plan.dropped.values())),
    }


def _require_readable(folder: Path, written: Mapping[str, TensorFacts], on_bytes: OnBytes) -> None:
    """Read the new folder as a user will: it must hold what was to be written before it gets its place."""
    if ReleasedFolder.open(folder, on_bytes=on_bytes).tensors != dict(written):
        raise OSError(f"{folder}: the tensors read back are not those written")


def _num_bytes(facts: TensorFacts) -> int:
    return facts.dtype.itemsize * torch.Size(facts.shape).numel()


def _num_stored(folder: Path) -> int:
    entries = FORMAT.entries(FORMAT.existing(Path(folder)))
    return sum(entry["bytes"] for name, entry in entries.items() if name not in FORMAT.required)


def _meter(on_progress: OnProgress | None, what: str, total: int) -> OnBytes:
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if on_progress is not None:
            on_progress(what, done, total)

    return advance


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """A name beside ``path``; what stands there at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)

"""Where each member of each sample lies in a tar file: one pass over the headers, no member is read.

The pass trusts nothing: links, devices, sparse files and names that leave the folder are refused, and a damaged
archive gives the samples whose bytes are all there.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ivt2.errors import InputError

VIDEO_TYPES = ("mp4", "webm", "avi", "mkv", "mov", "gif")
AUDIO_TYPES = ("wav", "flac", "mp3")
IMAGE_TYPES = ("jpg", "jpeg", "png")
TEXT_TYPES = ("json", "txt")
MEMBER_TYPES = (*VIDEO_TYPES, *AUDIO_TYPES, *IMAGE_TYPES, "txt", "json", "npy")
"""What is indexed and may be decoded. Anything else in a shard, pickles and torch files among it, is never read."""

BLOCK = 512
"""Bytes of a header; members begin at multiples of it."""


class Span(NamedTuple):
    """Position of a member's bytes in its shard."""

    offset: int
    size: int


@dataclass
class TarIndex:
    """What a pass over the headers found.

    Args:
        members: for each key, in the order of first appearance, where its members lie.
        unusable: for the keys that cannot be used, why.
        complete: the archive has its end marker and nothing unreadable lies between its members.
    """

    members: dict[str, dict[str, Span]] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    complete: bool = True


def scan(path: Path) -> TarIndex:
    """Index one shard.

    Args:
        path: an uncompressed tar file.

    Returns:
        Samples and what is wrong with some of them: reasons ``shard_truncated`` (the file ends within the sample),
        ``member_refused`` (a link, device or unsafe name) and ``duplicate_key``.

    Raises:
        InputError: when the file cannot be opened or is no tar file.
    """
    index = TarIndex()
    try:
        size = path.stat().st_size
        _require_tar(path)
        end = 0
        for info, at in _headers(path):
            index.complete &= info.offset == end
            end = at
            _enter(index, info, size)
        if not _ends_well(path, end):
            index.complete = False
            _doubt_last(index)
    except tarfile.TarError as error:
        raise InputError(f"{path}: is not a tar file ({error}); remove it or write the shard again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from error
    return index


def sample_key(name: str) -> tuple[str, str]:
    """Split a member's name as WebDataset does, at the first dot after the last slash.

    Returns:
        The key, safe to print, and the extension in lower case (empty when there is no dot).
    """
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    key = f"{folder}{slash}{stem}".encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return key, extension.lower()


def is_header(block: bytes, name: str, span: Span) -> bool:
    """Whether the block in front of a member is the header of a plain file of that key, type and size.

    Names and sizes that do not fit into a header stand in a record before it and are not compared.
    """
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    # other tools may have written "./" in front, and a backslash may stand for a byte that is no UTF-8
    elsewhere = not name.isascii() or "\\" in name or len(name) > tarfile.LENGTH_NAME - 2
    same_name = elsewhere or sample_key(info.name) == sample_key(name)
    return info.isreg() and same_name and info.size in {span.size, 0 if span.size >= 8**11 else span.size}


def _enter(index: TarIndex, info: tarfile.TarInfo, archive_size: int) -> None:
    key, extension = sample_key(info.name)
    if info.isdir() or extension not in MEMBER_TYPES:
        return
    spans = index.members.setdefault(key, {})
    if not info.isreg() or info.issparse() or _leaves_folder(info.name):
        index.unusable[key] = "member_refused"
    elif extension in spans:
        index.unusable[key] = "duplicate_key"
    elif info.offset_data + info.size > archive_size:
        index.unusable[key] = "shard_truncated"
    spans[extension] = Span(info.offset_data, info.size)


def _doubt_last(index: TarIndex) -> None:
    """The cut may have fallen between two members of the last sample, which then lacks a type that others have."""
    samples = list(index.members.items())
    if len(samples) > 1 and samples[-1][1].keys() < samples[0][1].keys():
        index.unusable.setdefault(samples[-1][0], "shard_truncated")


def _leaves_folder(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _headers(path: Path) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each readable header and the place where the next one should stand."""
    # ignore_zeros makes tarfile look for the next valid header after a damaged one instead of stopping silently
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", ignore_zeros=True, encoding="utf-8") as archive:
        last = -1
        info = archive.next()
        while info is not None and info.size >= 0 and archive.offset > last:
            last = archive.offset
            yield info, last
            archive.members = []  # type: ignore[attr-defined]  # or it would keep every header
            try:
                info = archive.next()
            except (tarfile.TarError, ValueError):
                return


def _require_tar(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(BLOCK)
    if head.startswith(b"\x1f\x8b"):
        raise InputError(f"{path}: is compressed, so samples cannot be read by their place; run gunzip on it")
    tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")


def _ends_well(path: Path, end: int) -> bool:
    """Whether two blocks of zeros, and nothing but zeros, follow the last member."""
    with path.open("rb") as file:
        file.seek(end)
        tail = file.read(20 * BLOCK)
        return len(tail) >= 2 * BLOCK and not any(tail)

"""Where each member of each sample lies in a tar file: one pass over the headers, no member is read.

The pass trusts nothing: links, devices, sparse files and names that leave the folder are refused, and a damaged
archive gives the samples whose bytes are all there.
"""

import hashlib
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ivt2.errors import InputError

VIDEO_TYPES = ("mp4", "webm", "avi", "mkv", "mov", "gif")
AUDIO_TYPES = ("wav", "flac", "mp3")
IMAGE_TYPES = ("jpg", "jpeg", "png")
MEMBER_TYPES = (*VIDEO_TYPES, *AUDIO_TYPES, *IMAGE_TYPES, "txt", "json", "npy")
"""What is indexed and may be decoded. Anything else in a shard, pickles and torch files among it, is never read."""

_BLOCK = 512


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


class SampleTable:
    """Keys, spans and failures of many samples in flat arrays, about a hundred bytes for a sample.

    Millions of small objects would cost ten times as much, and again in every forked worker as their reference counts
    are touched.
    """

    def __init__(self) -> None:
        self._keys = bytearray()
        self._key_end = array("q", [0])
        self._types = bytearray()
        self._spans = array("q")
        self._types_end = array("q", [0])
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._key_end) - 1

    def append(self, index: TarIndex, num_samples: int) -> None:
        """Add the samples of one shard; those beyond the ones found count as lost.

        Args:
            index: what was found.
            num_samples: how many the shard held when it was written.
        """
        for key, spans in index.members.items():
            self._add(key, spans, index.unusable.get(key))
        lost = "shard_damaged" if index.complete else "shard_truncated"
        for _ in range(num_samples - len(index.members)):
            self._add("", {}, lost)

    def key(self, sample: int) -> str:
        """Name of a sample, empty when it was lost with its header."""
        return self._keys[self._key_end[sample] : self._key_end[sample + 1]].decode()

    def spans(self, sample: int) -> dict[str, Span]:
        """Where the members of a sample lie in its shard."""
        members = range(self._types_end[sample], self._types_end[sample + 1])
        return {MEMBER_TYPES[self._types[i]]: Span(self._spans[2 * i], self._spans[2 * i + 1]) for i in members}

    def reason(self, sample: int) -> str | None:
        """Why a sample cannot be used; None when it can."""
        return self._reasons.get(sample)

    def fingerprint(self) -> str:
        """Hash of all keys and spans."""
        digest = hashlib.sha256(self._keys)
        for part in (self._types, self._spans, self._key_end, self._types_end):
            digest.update(part)
        return digest.hexdigest()

    def _add(self, key: str, spans: dict[str, Span], reason: str | None) -> None:
        if reason is not None:
            self._reasons[len(self)] = reason
        self._keys += key.encode()
        self._key_end.append(len(self._keys))
        for kind, span in spans.items():
            self._types.append(MEMBER_TYPES.index(kind))
            self._spans.extend(span)
        self._types_end.append(len(self._types))


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
        head = file.read(_BLOCK)
    if head.startswith(b"\x1f\x8b"):
        raise InputError(f"{path}: is compressed, so samples cannot be read by their place; run gunzip on it")
    tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")


def _ends_well(path: Path, end: int) -> bool:
    """Whether two blocks of zeros, and nothing but zeros, follow the last member."""
    with path.open("rb") as file:
        file.seek(end)
        tail = file.read(20 * _BLOCK)
        return len(tail) >= 2 * _BLOCK and not any(tail)

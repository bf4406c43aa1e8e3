"""What a string of bytes is, told from its content alone: file names and playlists are never followed."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Reason = Literal[
    "not_video",
    "not_audio",
    "not_image",
    "truncated",
    "corrupt",
    "no_video_stream",
    "unsupported_codec",
    "empty",
    "too_many_bytes",
    "too_large",
    "too_small",
    "too_long",
    "too_many_frames",
    "decoder_crashed",
    "decoder_timeout",
]
"""Why media cannot be used; the words are keys of logs and of the ledger.

``empty``: no frame in the file or in the part asked for. ``too_large``, ``too_small``: pixels of a frame.
``decoder_crashed``, ``decoder_timeout``: a decoder process died of the file, out of memory too, or took too long.
"""

Container = Literal["mov", "matroska", "avi", "mpegts", "ogg", "gif", "wav", "flac", "mp3", "aac"]
"""A container by the name of its demultiplexer."""

VIDEO_CONTAINERS: frozenset[Container] = frozenset({"mov", "matroska", "avi", "mpegts", "ogg", "gif"})

_BOXES = frozenset({
    b"ftyp",
    b"moov",
    b"mdat",
    b"moof",
    b"free",
    b"skip",
    b"wide",
    b"pnot",
    b"styp",
    b"sidx",
    b"uuid",
    b"meta",
})
_TS_PACKET = 188
_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
# Seek head, info, tracks, cues, cluster, chapters, tags, attachments; void and CRC-32 may stand anywhere.
_SEGMENT_PARTS = frozenset({
    b"\x11\x4d\x9b\x74",
    b"\x15\x49\xa9\x66",
    b"\x16\x54\xae\x6b",
    b"\x1c\x53\xbb\x6b",
    _CLUSTER,
    b"\x10\x43\xa7\x70",
    b"\x12\x54\xc3\x67",
    b"\x19\x41\xa4\x69",
    b"\xec",
    b"\xbf",
})
# Timestamp, simple block, block group, position, size of the previous cluster, encrypted block, silent tracks.
_CLUSTER_PARTS = frozenset({b"\xe7", b"\xa3", b"\xa0", b"\xa7", b"\xab", b"\xaf", b"\x58\x54", b"\xec", b"\xbf"})


class DecodeError(Exception):
    """Media bytes that cannot be used: the one exception for every failure of a codec library.

    Attributes:
        reason: One of a closed set of words, fit for counting.
        detail: What exactly, for people.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Limits:
    """What is refused from the header, before anything is decoded.

    Attributes:
        max_bytes: Size of the file.
        max_pixels: Height times width of a frame.
        min_side: Shorter side of a frame, in pixels.
        max_duration_s: Length, in seconds.
        max_frames: Number of frames.
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 4096 * 4096
    min_side: int = 8
    max_duration_s: float = 3600.0
    max_frames: int = 200_000

    def check_bytes(self, data: bytes) -> None:
        """Refuse a file of too many bytes."""
        if len(data) > self.max_bytes:
            raise DecodeError("too_many_bytes", f"{len(data)} bytes, at most {self.max_bytes}")

    def check_frame(self, height: int, width: int) -> None:
        """Refuse frames that are too large or too small."""
        if height * width > self.max_pixels:
            raise DecodeError("too_large", f"{width}x{height} pixels, at most {self.max_pixels}")
        if min(height, width) < self.min_side:
            raise DecodeError("too_small", f"{width}x{height} pixels, at least {self.min_side} on each side")

    def check_length(self, num_frames: int, duration_s: float) -> None:
        """Refuse media that last too long or have too many frames."""
        if duration_s > self.max_duration_s:
            raise DecodeError("too_long", f"{duration_s:.0f} s, at most {self.max_duration_s:.0f}")
        if num_frames > self.max_frames:
            raise DecodeError("too_many_frames", f"{num_frames} frames, at most {self.max_frames}")


def sniff(data: bytes) -> Container | None:
    """Tell the container from its first bytes, or None for anything else (HTML, playlists, text, archives).

    Only containers that hold their own data are known here.
    """
    if data[4:8] in _BOXES:
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska" if b"webm" in data[:64] or b"matroska" in data[:64] else None
    if data[:4] == b"RIFF":
        riff: dict[bytes, Container] = {b"AVI ": "avi", b"WAVE": "wav"}
        return riff.get(data[8:12])
    if _is_mpegts(data):
        return "mpegts"
    if data[:3] == b"ID3":
        return "mp3"
    return _sniff_frames(data)


def _is_mpegts(data: bytes) -> bool:
    marks = data[: 4 * _TS_PACKET : _TS_PACKET]
    return len(marks) >= 2 and set(marks) == {0x47}


def _sniff_frames(data: bytes) -> Container | None:
    marks: dict[bytes, Container] = {b"OggS": "ogg", b"GIF8": "gif", b"fLaC": "flac"}
    if data[:4] in marks:
        return marks[data[:4]]
    if len(data) > 4 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return "aac"
    if len(data) > 4 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2:  # MPEG audio, layer III
        return "mp3"
    return None


def check_complete(data: bytes, container: Container) -> None:
    """Refuse a file that is shorter than its own structure says.

    Args:
        data: The whole file.
        container: As told by ``sniff``.

    Raises:
        DecodeError: ``truncated``; ``not_video`` for a chain of boxes without any media in it.
    """
    if container == "mov":
        _check_boxes(data)
    elif container == "avi":
        (size,) = struct.unpack("<I", data[4:8])
        if 0 < size < 0xFFFFFFFF and size + 8 > len(data) + 1:
            raise DecodeError("truncated", f"{len(data)} bytes of {size + 8}")
    elif container == "matroska":
        _check_segment(data)


def _check_boxes(data: bytes) -> None:
    """Walk over the top level: every known box must end within the file, and one must describe the tracks."""
    position, names = 0, set[bytes]()
    while position + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[position : position + 8])
        if size == 1 and position + 16 <= len(data):
            (size,) = struct.unpack(">Q", data[position + 8 : position + 16])
        if size == 0:
            size = len(data) - position
        if name not in _BOXES and not {b"moov", b"moof"}.isdisjoint(names):
            break  # rubbish behind a complete file
        if size < 8 or (name not in _BOXES and position + size > len(data)):
            raise DecodeError("corrupt", f"no valid box at byte {position}")
        if position + size > len(data):
            raise DecodeError("truncated", f"{len(data)} bytes, box {name.decode()} ends at {position + size}")
        names.add(name)
        position += size
    if b"moov" not in names:
        raise DecodeError("truncated" if b"mdat" in names else "not_video", "no moov box")


def _check_segment(data: bytes) -> None:
    """Walk over the parts of a Matroska file: all must be known and end within the file, and checksums be right."""
    header, position = _ebml_number(data, 4)
    position += header or 0
    if data[position : position + 4] != _SEGMENT:
        raise DecodeError("corrupt", "no segment behind the EBML header")
    size, position = _ebml_number(data, position + 4)
    end = len(data) if size is None else position + size
    if end > len(data):
        raise DecodeError("truncated", f"{len(data)} bytes, segment ends at {end}")
    for name, start, stop in _elements(data, position, end, _SEGMENT_PARTS):
        if stop - start >= 6 and data[start : start + 2] == b"\xbf\x84":  # a CRC-32 of the rest stands first
            expected = int.from_bytes(data[start + 2 : start + 6], "little")
            if zlib.crc32(memoryview(data)[start + 6 : stop]) != expected:
                raise DecodeError("corrupt", f"wrong checksum of bytes {start} to {stop}")
        elif name == _CLUSTER:
            for _ in _elements(data, start, stop, _CLUSTER_PARTS):
                pass


def _elements(data: bytes, position: int, end: int, names: frozenset[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and stop of the elements in a range, up to one of unknown length (a live recording)."""
    while position < end:
        name = data[position : position + 9 - data[position].bit_length()]
        if name not in names:
            raise DecodeError("corrupt", f"no valid element at byte {position}")
        size, start = _ebml_number(data, position + len(name))
        if size is None:
            return
        position = start + size
        if position > end:
            raise DecodeError("truncated", f"{end} bytes, element ends at {position}")
        yield name, start, position


def _ebml_number(data: bytes, position: int) -> tuple[int | None, int]:
    """Read a variable-length number and the position behind it; None is the reserved 'unknown'."""
    first = data[position] if position < len(data) else 0
    num_bytes = 9 - first.bit_length()
    raw = data[position : position + num_bytes]
    if num_bytes > 8 or len(raw) < num_bytes:
        raise DecodeError("truncated", f"no number at byte {position}")
    payload = (1 << 7 * num_bytes) - 1
    value = int.from_bytes(raw, "big") & payload
    return (None if value == payload else value), position + num_bytes

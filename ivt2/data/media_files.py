"""Media files as they lie on a disk: the content of a record's file, and a folder of pictures as one clip."""

import os
from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from posixpath import splitext
from stat import S_ISDIR, S_ISREG

from ivt2.data.annotations import Annotation, FrameFiles, filled
from ivt2.data.ledger import SampleError
from ivt2.data.tar_index import AUDIO_TYPES, IMAGE_TYPES, VIDEO_TYPES

MAX_MEDIA_BYTES = 512 << 20
"""Larger files are not packed; the decoder refuses them too."""

_TYPES = frozenset({*VIDEO_TYPES, *AUDIO_TYPES, *IMAGE_TYPES})


def read_media(record: Annotation, media_root: str) -> tuple[str, bytes]:
    """Read the file of a record.

    Args:
        record: names the file; its ``frames`` become motion JPEG in Matroska.
        media_root: folder that the file is relative to.

    Returns:
        Its type, such as ``mp4``, and its content.

    Raises:
        SampleError: reasons ``file_outside_media_root``, ``file_missing``, ``file_type_unknown``, ``file_too_large``,
            ``file_unreadable``, ``frame_invalid`` and ``frame_sizes_differ``.
    """
    parts = record.file.split("/")
    if record.file.startswith("/") or ".." in parts:
        raise SampleError("file_outside_media_root")
    if {"", "."}.issuperset(parts):
        raise SampleError("file_missing")
    path = f"{media_root}/{record.file}"
    kind = splitext(record.file)[1].removeprefix(".").lower()
    try:
        if record.frames is not None:
            return "mkv", _video_of(path, record.frames)
        if kind not in _TYPES:
            raise SampleError("file_type_unknown")
        return kind, _content(path, MAX_MEDIA_BYTES)
    except (OSError, ValueError) as error:
        raise SampleError("file_unreadable") from error


def file_state(path: str | Path) -> list[int] | None:
    """What changes when a file or folder does: time of its last change in ns, and size; None when it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116  # names of any kind come here, and Path costs more than the call
    except (OSError, ValueError):
        return None
    return [found.st_mtime_ns, found.st_size]


def _content(path: str, max_bytes: int) -> bytes:
    try:
        # without waiting for the other end, should it be a pipe; no file object, which would cost more than the rest
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SampleError("file_missing") from error
    try:
        found = os.fstat(file)
        if not S_ISREG(found.st_mode):
            raise SampleError("file_missing")
        if found.st_size > max_bytes:
            raise SampleError("file_too_large")
        data = os.read(file, found.st_size)
        return data if len(data) == found.st_size else data + _rest(file, found.st_size - len(data))
    finally:
        os.close(file)


def _rest(file: int, num_bytes: int) -> bytes:
    """What one call did not read."""
    parts = []
    while num_bytes and (part := os.read(file, num_bytes)):
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def _video_of(folder: str, frames: FrameFiles) -> bytes:
    """Motion JPEG in Matroska: the frames' own bytes, none of them encoded anew and each a key frame."""
    from av.error import FFmpegError

    try:
        is_folder = S_ISDIR(os.stat(folder).st_mode)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        is_folder = False
    if not is_folder:
        raise SampleError("file_missing")
    pictures, size = [], 0
    for number in range(1, frames.num_frames + 1):
        name = filled(frames.template, {"": number})
        if name is None or not name or "/" in name or name in {".", ".."}:
            raise SampleError("file_outside_media_root")
        pictures.append(_content(f"{folder}/{name}", MAX_MEDIA_BYTES - size))
        size += len(pictures[-1])
    try:
        return _motion_jpeg(pictures, _common_size(pictures), Fraction(frames.fps).limit_denominator(1001))
    except FFmpegError as error:
        raise SampleError("frame_invalid") from error


def _motion_jpeg(pictures: Sequence[bytes], size: tuple[int, int], rate: Fraction) -> bytes:
    import av

    video = BytesIO()
    # bitexact: without it the file would hold a random number, and packing twice would give other shards
    with av.open(video, "w", format="matroska", options={"fflags": "bitexact"}) as output:
        stream = output.add_stream("mjpeg", rate=rate)
        (stream.width, stream.height), stream.pix_fmt = size, "yuvj420p"
        for number, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.stream, packet.time_base, packet.is_keyframe = stream, 1 / rate, True
            packet.pts = packet.dts = number
            packet.duration = 1
            output.mux(packet)
    return video.getvalue()


def _common_size(pictures: Sequence[bytes]) -> tuple[int, int]:
    """Width and height of the pictures, from their headers."""
    from PIL import Image

    sizes = set()
    for picture in pictures:
        try:
            with Image.open(BytesIO(picture), formats=["JPEG"]) as opened:
                sizes.add(opened.size)
        except (OSError, Image.DecompressionBombError) as error:
            raise SampleError("frame_invalid") from error
    if len(sizes) != 1:
        raise SampleError("frame_sizes_differ")
    return sizes.pop()

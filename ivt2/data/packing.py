"""Packing: annotated media files become shards."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path, PurePosixPath

from ivt2.batch import Skipped
from ivt2.data.annotations import Annotation, FrameFiles, filled
from ivt2.data.ledger import Ledger, SampleError
from ivt2.data.manifest import Manifest
from ivt2.data.shards import ShardWriter
from ivt2.data.tar_index import AUDIO_TYPES, IMAGE_TYPES, VIDEO_TYPES
from ivt2.errors import InputError

MAX_MEDIA_BYTES = 512 << 20
"""Larger files are not packed; the decoder refuses them too."""


def pack(
    records: Iterable[Annotation | Skipped],
    media_root: str | Path,
    folder: str | Path,
    *,
    source: str,
    ledger: Ledger,
    max_samples: int = 1000,
    max_bytes: int = 1 << 30,
    overwrite: bool = False,
    annotation_files: Sequence[str | Path] = (),
    on_record: Callable[[str], None] | None = None,
) -> Manifest:
    """Pack annotated media files into shards.

    Args:
        records: as a source gives them.
        media_root: folder that the records' files are relative to.
        folder: where the shards go.
        source: name that records which cannot be used are entered under.
        ledger: counts them and stops beyond its budget.
        max_samples: samples of a shard.
        max_bytes: bytes of a shard.
        overwrite: replace shards that are there.
        annotation_files: what the records were read from; the manifest names them with their hash.
        on_record: called with the name of each record after it was packed or skipped, for a progress bar.

    Returns:
        The manifest as written.

    Raises:
        InputError: when the media folder is absent, the shard folder cannot be written or nothing could be packed.
    """
    media_root = Path(media_root)
    if not media_root.is_dir():
        raise InputError(f"{media_root}: no such folder; give the folder that the files of the annotations lie in")
    keys: dict[str, int] = {}
    with ShardWriter(
        folder, max_samples=max_samples, max_bytes=max_bytes, overwrite=overwrite, sources=annotation_files
    ) as writer:
        for record in records:
            ledger.add_seen(1)
            name = record.key if isinstance(record, Skipped) else record.file
            try:
                members = _members(record, media_root)
            except SampleError as error:
                ledger.add(Skipped(source, name, error.reason))
            else:
                assert isinstance(record, Annotation)
                writer.write(_free_key(record.file, keys), members, _duration_s(record))
            if on_record is not None:
                on_record(name)
    return writer.manifest


def _members(record: Annotation | Skipped, media_root: Path) -> dict[str, bytes]:
    """Members of a record's sample: its file and what the record says."""
    if isinstance(record, Skipped):
        raise SampleError(record.reason)
    kind, media = _media(record, media_root)
    try:
        text = json.dumps(record.to_member(), ensure_ascii=False, allow_nan=False)
        return {kind: media, "json": text.encode()}
    except UnicodeEncodeError as error:  # a lone surrogate somewhere in a fact
        raise SampleError("text_invalid_utf8") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise SampleError("json_invalid") from error


def _media(record: Annotation, media_root: Path) -> tuple[str, bytes]:
    """Type and content of a record's file."""
    path = PurePosixPath(record.file)
    kind = path.suffix.removeprefix(".").lower()
    if path.is_absolute() or ".." in path.parts:
        raise SampleError("file_outside_media_root")
    if not path.name:
        raise SampleError("file_missing")
    try:
        if record.frames is not None:
            return "mkv", _video_of(media_root / path, record.frames)
        if kind not in {*VIDEO_TYPES, *AUDIO_TYPES, *IMAGE_TYPES}:
            raise SampleError("file_type_unknown")
        return kind, _content(media_root / path, MAX_MEDIA_BYTES)
    except (OSError, ValueError) as error:
        raise SampleError("file_unreadable") from error


def _content(file: Path, max_bytes: int) -> bytes:
    if not file.is_file():
        raise SampleError("file_missing")
    if file.stat().st_size > max_bytes:
        raise SampleError("file_too_large")
    return file.read_bytes()


def _video_of(folder: Path, frames: FrameFiles) -> bytes:
    """Motion JPEG in Matroska: the frames' own bytes, none of them encoded anew and each a key frame."""
    from av.error import FFmpegError

    if not folder.is_dir():
        raise SampleError("file_missing")
    pictures, size = [], 0
    for number in range(1, frames.num_frames + 1):
        name = filled(frames.template, {"": number})
        if name is None or PurePosixPath(name).name != name:
            raise SampleError("file_outside_media_root")
        pictures.append(_content(folder / name, MAX_MEDIA_BYTES - size))
        size += len(pictures[-1])
    try:
        return _motion_jpeg(pictures, _common_size(pictures), Fraction(frames.fps).limit_denominator(1001))
    except FFmpegError as error:
        raise SampleError("frame_invalid") from error


def _motion_jpeg(pictures: list[bytes], size: tuple[int, int], rate: Fraction) -> bytes:
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


def _common_size(pictures: list[bytes]) -> tuple[int, int]:
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


def _free_key(file: str, keys: dict[str, int]) -> str:
    """A key that still tells the file: its path without the type, dots and slashes replaced, numbered when taken.

    Args:
        file: path of the media file.
        keys: the keys taken so far, each with the number that was last added to it.
    """
    stem = str(PurePosixPath(file).with_suffix(""))
    stem = "".join(letter if letter.isprintable() and letter not in "./\\" else "_" for letter in stem)
    key, number = stem, keys.get(stem, 1)
    while key in keys:
        number += 1
        key = f"{stem}_{number}"
    keys[stem] = number
    keys.setdefault(key, 1)
    return key


def _duration_s(record: Annotation) -> float | None:
    duration_s = record.facts.get("duration_s")
    if not isinstance(duration_s, int | float) or isinstance(duration_s, bool) or not 0 <= duration_s < math.inf:
        return None
    return float(duration_s)

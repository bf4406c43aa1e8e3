"""Headers and frames through PyAV: every codec, frame-exact by its own index of presentation times."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ivt2.data.containers import Container, DecodeError, Limits, Reason

if TYPE_CHECKING:
    from av.container import InputContainer

Allocate = Callable[[tuple[int, int, int, int]], NDArray[np.uint8]]
"""Gets frames, rows, columns and channels, returns where the pixels go."""

_SEEKABLE = frozenset({"mov", "matroska"})  # in the others a seek lands beside its target
# Codec -> where its configuration record states the size of length fields; shift and mask of a unit's type; IDR types.
_IDR_UNITS = {"h264": (4, 0, 0x1F, {5}), "hevc": (21, 1, 0x3F, {19, 20})}
_DEFAULT_FPS = 25.0  # of a single picture without any rate


@dataclass(frozen=True)
class VideoIndex:
    """What the header and the packets say about a video stream, without any frame being decoded.

    Attributes:
        container: Demultiplexer.
        codec: Codec, by its standard name.
        pixel_format: Layout and depth of the coded pixels; empty if the header does not say.
        height: Rows of a coded frame, before rotation.
        width: Columns of a coded frame, before rotation.
        fps: Average frames per second.
        times_s: Presentation time of every shown frame, the first one at 0.
        timestamps: The same in units of the stream; None where the container has no trustworthy ones.
        keys: Sorted timestamps from which decoding can begin; empty where it must begin at the start.
        trimmed: An edit list hides packets.
        open_gop: Some frames need others from before the last key frame, or might: decoding from there is delicate.
        num_video_streams: Moving pictures in the file; the first is read.
    """

    container: Container
    codec: str
    pixel_format: str
    height: int
    width: int
    fps: float
    times_s: NDArray[np.float64]
    timestamps: list[int] | None
    keys: list[int]
    trimmed: bool
    open_gop: bool
    num_video_streams: int

    @property
    def num_frames(self) -> int:
        """Number of shown frames."""
        return len(self.times_s)

    @property
    def duration_s(self) -> float:
        """Time until the last frame ends."""
        return float(self.times_s[-1]) + 1.0 / self.fps


@contextmanager
def codec_errors() -> Iterator[None]:
    """Turn what PyAV raises on damaged input into a ``DecodeError``."""
    import av.error

    try:
        yield
    except (av.error.DecoderNotFoundError, av.error.PatchWelcomeError) as error:
        raise DecodeError("unsupported_codec", str(error)) from error
    except (av.error.FFmpegError, ValueError, IndexError, OverflowError) as error:
        raise DecodeError("corrupt", str(error)) from error


@contextmanager
def open_container(data: bytes, container: Container) -> "Iterator[InputContainer]":
    """Open bytes with one demultiplexer and no other, and close them again."""
    import av

    with codec_errors():
        opened = av.open(BytesIO(data), format=container, metadata_errors="replace")
    with opened:
        yield opened


def _video_streams(opened: "InputContainer") -> list[Any]:
    from av.stream import Disposition

    return [stream for stream in opened.streams.video if not stream.disposition & Disposition.attached_pic]


def read_index(opened: "InputContainer", container: Container, limits: Limits) -> VideoIndex:
    """Check the header, then read through all packets of the first video stream.

    Raises:
        DecodeError: No picture, a frame size, length or number of frames beyond ``limits``, or no frame at all.
    """
    with codec_errors():
        streams = _video_streams(opened)
    if not streams:
        raise DecodeError("no_video_stream", f"{len(opened.streams.audio)} audio streams only")
    stream = streams[0]
    if stream.codec_context is None:
        raise DecodeError("unsupported_codec", "no decoder for the video stream")
    height, width = stream.codec_context.height, stream.codec_context.width
    if height <= 0 or width <= 0:
        raise DecodeError("corrupt", "the header states no frame size")
    limits.check_frame(height, width)
    limits.check_length(stream.frames, _header_duration_s(opened, stream))

    with codec_errors():
        packets = _read_packets(opened, stream, limits)
    num_frames = len(packets.timestamps)
    if not num_frames:
        raise DecodeError("empty", "no frame")
    ordered = sorted(stamp for stamp in packets.timestamps if stamp is not None)
    exact = len(set(ordered)) == num_frames
    span_s = float((ordered[-1] - ordered[0]) * stream.time_base) if exact else 0.0
    fps = float(stream.average_rate or 0) or (_DEFAULT_FPS if span_s <= 0 else (num_frames - 1) / span_s)
    if exact:
        times_s = (np.asarray(ordered, dtype=np.float64) - ordered[0]) * float(stream.time_base)
    else:
        times_s = np.arange(num_frames, dtype=np.float64) / fps
    limits.check_length(num_frames, float(times_s[-1]))
    return VideoIndex(
        container=container,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=stream.codec_context.pix_fmt or "",
        height=height,
        width=width,
        fps=fps,
        times_s=times_s,
        timestamps=ordered if exact else None,
        keys=sorted(packets.keys) if exact and container in _SEEKABLE else [],
        trimmed=packets.trimmed,
        open_gop=packets.open_gop,
        num_video_streams=len(streams),
    )


def _header_duration_s(opened: "InputContainer", stream: Any) -> float:
    """Longest duration that the header states; 0 if none."""
    whole = (opened.duration or 0) / 1_000_000
    own = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    return max(whole, own)


class _Packets(NamedTuple):
    """Shown packets and key packets by timestamp, in the order of storage, and two facts about them."""

    timestamps: list[int | None]
    keys: list[int]
    trimmed: bool
    open_gop: bool


def _read_packets(opened: "InputContainer", stream: Any, limits: Limits) -> _Packets:
    """Read all packets of a stream; those that cannot be shown are left out."""
    timestamps: list[int | None] = []
    keys: list[int] = []
    trimmed = open_gop = False
    for packet in opened.demux(stream):
        if packet.size == 0 or (stream.codec_context.name == "vp8" and not _vp8_shown(packet)):
            continue
        if packet.is_corrupt:
            raise DecodeError("truncated", f"packet {len(timestamps)} is incomplete")
        if packet.is_keyframe and packet.pts is not None:
            keys.append(packet.pts)
            open_gop |= not _refreshes(packet)
        open_gop |= bool(keys) and packet.pts is not None and packet.pts < keys[-1]
        trimmed |= packet.is_discard
        if not packet.is_discard and _decodable(packet, keys):
            timestamps.append(packet.pts)
        if len(timestamps) > limits.max_frames:
            raise DecodeError("too_many_frames", f"more than {limits.max_frames} frames")
    return _Packets(timestamps, keys, trimmed, open_gop)


def _refreshes(packet: Any) -> bool:
    """Whether a key frame of H.264 or HEVC empties the decoder's memory (IDR): not all do. True for other codecs."""
    codec = packet.stream.codec_context
    if codec.name not in _IDR_UNITS:
        return True
    length_at, shift, mask, idr = _IDR_UNITS[codec.name]
    configuration = codec.extradata or b""
    if len(configuration) <= length_at or configuration[0] != 1:  # not the record that mp4 and Matroska keep
        return False
    length_size = (configuration[length_at] & 3) + 1
    data = memoryview(packet)
    position = 0
    while position + length_size < len(data):
        unit = position + length_size
        if data[unit] >> shift & mask in idr:
            return True
        position = unit + int.from_bytes(data[position:unit], "big")
    return False


def _vp8_shown(packet: Any) -> bool:
    """Read the bit of the frame header that is 0 for alternative reference frames."""
    return bool(bytes(packet)[0] & 0x10)


def _decodable(packet: Any, keys: list[int]) -> bool:
    """Whether the key frame that a packet builds on is in the file, which may have been cut anywhere."""
    if not keys:  # key frames are not marked in every container
        return bool(packet.stream.container.format.name != "mpegts")
    return packet.pts is None or packet.pts >= keys[0]


def allocate_pixels(shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Make room in the memory of this process."""
    return np.empty(shape, dtype=np.uint8)


def decode_frames(
    data: bytes,
    opened: "InputContainer",
    index: VideoIndex,
    wanted: Sequence[int],
    *,
    allocate: Allocate = allocate_pixels,
) -> NDArray[np.uint8]:
    """Decode frames by number.

    Of H.264 the frames that are neither wanted nor needed for others are passed over.

    Args:
        data: The whole file, opened again where it cannot be sought in.
        opened: The file, whose packets have been read.
        index: What ``read_index`` said of it.
        wanted: Frame numbers, increasing.
        allocate: Makes room for the pixels, before any turning.

    Returns:
        RGB pixels [T, H, W, C], turned as the file's display matrix says.

    Raises:
        DecodeError: ``truncated`` if the stream ends before a wanted frame, ``corrupt`` if the decoder reports damage
            in a frame between the key frame and the wanted frame that was not passed over.
    """
    pixels = allocate((len(wanted), index.height, index.width, 3))
    if index.codec == "h264" and _seekable(index, wanted[0]):
        with suppress(DecodeError):  # where the stream is not what it says, the reason comes from decoding all of it
            return _collect(_seek_frames(opened, index, wanted, sparing=True), pixels)
        with open_container(data, index.container) as again:
            return _collect(coded_frames(data, again, index, wanted), pixels)
    return _collect(coded_frames(data, opened, index, wanted), pixels)


def _seekable(index: VideoIndex, first: int) -> bool:
    """Whether there is a key frame to begin at for a frame and all behind it."""
    return index.timestamps is not None and bool(index.keys) and index.keys[0] <= index.timestamps[first]


def coded_frames(data: bytes, opened: "InputContainer", index: VideoIndex, wanted: Sequence[int]) -> Iterator[Any]:
    """Yield frames as they come from the decoder, not turned; arguments and errors are those of ``decode_frames``.

    No frame between the key frame and a wanted one is passed over.
    """
    if _seekable(index, wanted[0]):
        yield from _seek_frames(opened, index, wanted)
        return
    with open_container(data, index.container) as again:
        yield from _sequential_frames(again, index, wanted)


def _prepare(stream: Any) -> None:
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "SLICE"


def _undamaged(frame: Any) -> Any:
    if frame.is_corrupt:
        raise DecodeError("corrupt", f"the decoder reports damage at timestamp {frame.pts}")
    return frame


def _seek_frames(
    opened: "InputContainer", index: VideoIndex, wanted: Sequence[int], *, sparing: bool = False
) -> Iterator[Any]:
    assert index.timestamps is not None
    stream = _video_streams(opened)[0]
    _prepare(stream)
    shown = {index.timestamps[number] for number in wanted} if sparing else None
    frames: Iterator[Any] = iter(())
    current: int | None = None
    for number in wanted:
        target = index.timestamps[number]
        key = index.keys[bisect_right(index.keys, target) - 1]
        if current is None or key > current:
            opened.seek(key, stream=stream, backward=True, any_frame=False)
            frames = _decoded(opened, stream, shown)
        for frame in frames:
            current = frame.pts
            if current is not None and current >= key:
                _undamaged(frame)
            if current is not None and current >= target:
                break
        if current != target:
            reason: Reason = "truncated" if current is None or current < target else "corrupt"
            raise DecodeError(reason, f"no frame {number} at timestamp {target}")
        yield frame


def _decoded(opened: "InputContainer", stream: Any, shown: set[int] | None) -> Iterator[Any]:
    """Yield every frame; given those that are ``shown``, without others that no frame refers to."""
    codec = stream.codec_context
    skipped = codec.skip_frame = "DEFAULT"
    for packet in opened.demux(stream):
        skips = "DEFAULT" if shown is None or packet.pts in shown else "NONREF"
        if skips != skipped:
            skipped = codec.skip_frame = skips
        yield from packet.decode()


def _sequential_frames(opened: "InputContainer", index: VideoIndex, wanted: Sequence[int]) -> Iterator[Any]:
    stream = _video_streams(opened)[0]
    _prepare(stream)
    first = None if index.timestamps is None else index.timestamps[0]
    remaining = list(reversed(wanted))
    number = 0
    for frame in opened.decode(stream):
        if first is not None and frame.pts is not None and frame.pts < first:
            continue  # builds on a frame before the beginning of the file
        _undamaged(frame)
        if number == remaining[-1]:
            remaining.pop()
            yield frame
        if not remaining:
            return
        number += 1
    raise DecodeError("truncated", f"the stream ends after {number} frames, before frame {remaining[-1]}")


def _collect(frames: Iterator[Any], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert to RGB of the size of the header, then turn upright."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one for all frames: a fresh one per frame costs more than the conversion
    _, height, width, _ = pixels.shape
    rotation = 0
    with codec_errors():
        for slot, frame in enumerate(frames):
            # one thread: the library else starts one for each core, for every clip anew
            pixels[slot] = reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
            rotation = frame.rotation
    return np.rot90(pixels, round(rotation / 90) % 4, axes=(1, 2)) if rotation % 360 else pixels

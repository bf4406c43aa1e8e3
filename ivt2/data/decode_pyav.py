"""Headers and frames through PyAV: every codec, frame-exact by its own index of presentation times."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivt2.data.containers import Container, DecodeError, Limits

if TYPE_CHECKING:
    from av.container import InputContainer

_SEEKABLE = frozenset({"mov", "matroska"})  # in the others a seek lands beside its target


@dataclass(frozen=True)
class VideoIndex:
    """What the header and the packets say about a video stream, without any frame being decoded.

    Attributes:
        container: Demultiplexer.
        codec: Codec, by the decoder's name.
        height: Rows of a coded frame, before rotation.
        width: Columns of a coded frame, before rotation.
        fps: Average frames per second.
        times_s: Presentation time of every shown frame, the first one at 0.
        timestamps: The same in units of the stream; None where the container has no trustworthy ones.
        keys: Sorted timestamps from which decoding can begin; empty where it must begin at the start.
        trimmed: An edit list hides packets.
        num_video_streams: Moving pictures in the file; the first is read.
    """

    container: Container
    codec: str
    height: int
    width: int
    fps: float
    times_s: NDArray[np.float64]
    timestamps: list[int] | None
    keys: list[int]
    trimmed: bool
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
        timestamps, keys, trimmed = _read_packets(opened, stream, limits)
    if not timestamps:
        raise DecodeError("empty", "no frame")
    fps = float(stream.average_rate or 0)
    ordered = sorted(stamp for stamp in timestamps if stamp is not None)
    exact = len(set(ordered)) == len(timestamps)
    if fps <= 0:
        span_s = float((ordered[-1] - ordered[0]) * stream.time_base) if exact else 0.0
        fps = (len(ordered) - 1) / span_s if span_s > 0 else 25.0
    if exact:
        times_s = (np.asarray(ordered, dtype=np.float64) - ordered[0]) * float(stream.time_base)
    else:
        times_s = np.arange(len(timestamps), dtype=np.float64) / fps
    limits.check_length(len(timestamps), float(times_s[-1]))
    seekable = exact and container in _SEEKABLE
    return VideoIndex(
        container=container,
        codec=stream.codec_context.codec.canonical_name,
        height=height,
        width=width,
        fps=fps,
        times_s=times_s,
        timestamps=ordered if exact else None,
        keys=sorted(keys) if seekable else [],
        trimmed=trimmed,
        num_video_streams=len(streams),
    )


def _header_duration_s(opened: "InputContainer", stream: Any) -> float:
    """Longest duration that the header states; 0 if none."""
    whole = (opened.duration or 0) / 1_000_000
    own = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    return max(whole, own)


def _read_packets(opened: "InputContainer", stream: Any, limits: Limits) -> tuple[list[int | None], list[int], bool]:
    """Return timestamps of shown frames (in decoding order), timestamps of key frames, and whether packets are hidden."""
    timestamps: list[int | None] = []
    keys: list[int] = []
    trimmed = False
    vp8 = stream.codec_context.name == "vp8"
    for packet in opened.demux(stream):
        if packet.size == 0 or (vp8 and not bytes(packet)[0] & 0x10):  # end of stream; reference frame never shown
            continue
        if packet.is_corrupt:
            raise DecodeError("truncated", f"packet {len(timestamps)} is incomplete")
        if packet.is_keyframe and packet.pts is not None:
            keys.append(packet.pts)
        if packet.is_discard:
            trimmed = True
        elif keys or container_starts_anywhere(packet):
            timestamps.append(packet.pts)
        if len(timestamps) > limits.max_frames:
            raise DecodeError("too_many_frames", f"more than {limits.max_frames} frames")
    return timestamps, keys, trimmed


def container_starts_anywhere(packet: Any) -> bool:
    """Whether packets before the first key frame count: not in a transport stream, which may be cut anywhere."""
    return bool(packet.stream.container.format.name != "mpegts")


def decode_frames(data: bytes, opened: "InputContainer", index: VideoIndex, wanted: Sequence[int]) -> NDArray[np.uint8]:
    """Decode frames by number.

    Args:
        data: The whole file, opened again where it cannot be sought in.
        opened: The file, whose packets have been read.
        index: What ``read_index`` said of it.
        wanted: Frame numbers, increasing.

    Returns:
        RGB pixels [T, H, W, C], turned as the file's display matrix says.

    Raises:
        DecodeError: ``truncated`` if the stream ends before a wanted frame, ``corrupt`` if the decoder reports damage
            anywhere between the key frame and the wanted frame.
    """
    if index.timestamps is not None and index.keys and index.keys[0] <= index.timestamps[wanted[0]]:
        return _collect(_seek_frames(opened, index, wanted), index, len(wanted))
    with open_container(data, index.container) as again:
        return _collect(_sequential_frames(again, wanted), index, len(wanted))


def _prepare(stream: Any) -> None:
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "SLICE"


def _undamaged(frame: Any) -> Any:
    if frame.is_corrupt:
        raise DecodeError("corrupt", f"the decoder reports damage at timestamp {frame.pts}")
    return frame


def _seek_frames(opened: "InputContainer", index: VideoIndex, wanted: Sequence[int]) -> Iterator[Any]:
    assert index.timestamps is not None
    stream = _video_streams(opened)[0]
    _prepare(stream)
    frames: Iterator[Any] = iter(())
    current: int | None = None
    for number in wanted:
        target = index.timestamps[number]
        key = index.keys[bisect_right(index.keys, target) - 1]
        if current is None or key > current:
            opened.seek(key, stream=stream, backward=True, any_frame=False)
            frames = opened.decode(stream)
        for frame in frames:
            current = frame.pts
            if current is not None and current >= key:
                _undamaged(frame)
            if current is not None and current >= target:
                break
        if current != target:
            reason = "truncated" if current is None or current < target else "corrupt"
            raise DecodeError(reason, f"no frame {number} at timestamp {target}")
        yield frame


def _sequential_frames(opened: "InputContainer", wanted: Sequence[int]) -> Iterator[Any]:
    stream = _video_streams(opened)[0]
    _prepare(stream)
    remaining = list(reversed(wanted))
    count = 0
    for count, frame in enumerate(opened.decode(stream), start=1):
        _undamaged(frame)
        if count - 1 == remaining[-1]:
            remaining.pop()
            yield frame
        if not remaining:
            return
    raise DecodeError("truncated", f"the stream ends after {count} frames, before frame {remaining[-1]}")


def _collect(frames: Iterator[Any], index: VideoIndex, num_frames: int) -> NDArray[np.uint8]:
    """Convert to RGB of the size of the header, then turn upright."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one for all frames: a fresh one per frame costs more than the conversion
    pixels = np.empty((num_frames, index.height, index.width, 3), dtype=np.uint8)
    rotation = 0
    with codec_errors():
        for slot, frame in enumerate(frames):
            pixels[slot] = reformatter.reformat(frame, index.width, index.height, "rgb24").to_ndarray()
            rotation = frame.rotation
    return np.rot90(pixels, round(rotation / 90) % 4, axes=(1, 2)) if rotation % 360 else pixels

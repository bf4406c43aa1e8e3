"""Video and sound encoded anew, from bytes to bytes in memory; equal input gives equal output.

One thread encodes, and the containers hold neither a date nor a random number, so that packing twice gives the same
shards. Frames are those that the reader shows, in the same order and at the same times.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ivt2.data.containers import Limits
from ivt2.data.decode_arrays import open_video, window
from ivt2.data.decode_pyav import VideoIndex, codec_errors, coded_frames
from ivt2.data.ledger import SampleError
from ivt2.errors import InputError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_SPEEDS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_ROUNDING_S = 1e-6  # a frame shown at a moment of the grid belongs to it


@dataclass(frozen=True, kw_only=True)
class VideoPreset:
    """How video is encoded anew: H.264 4:2:0 in mp4, closed groups of pictures, cheap to decode.

    A frame is decoded from the last key frame on, so short groups of small pictures are what makes reading a few
    frames of a clip cheap; and B-frames, to which no other frame refers here, are passed over by our reader.

    Args:
        short_side: pixels of the shorter side, even; a smaller video keeps its size, made even.
        gop: frames from one key frame to the next.
        b_frames: between two frames that others refer to, from 0 to 16; 0 is for readers that decode every frame.
        max_fps: a video of more frames a second keeps those that are on the screen so often; None keeps all.
        crf: quality, from 1 (best) to 51.
        speed: of the encoder, an x264 preset.

    Raises:
        InputError: for values that cannot be encoded.
    """

    short_side: int = 256
    gop: int = 8
    b_frames: int = 3
    max_fps: float | None = None
    crf: int = 23
    speed: str = "veryfast"

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise InputError(f"short_side={self.short_side}: give an even number of pixels, at least 16")
        if self.gop < 1 or not 1 <= self.crf <= 51:
            raise InputError(f"gop={self.gop}, crf={self.crf}: give a gop of at least 1 and a crf from 1 to 51")
        if not 0 <= self.b_frames <= 16:
            raise InputError(f"b_frames={self.b_frames}: give a number from 0 to 16")
        if self.max_fps is not None and not 0 < self.max_fps < float("inf"):
            raise InputError(f"max_fps={self.max_fps}: give a positive number, or null to keep all frames")
        if self.speed not in _SPEEDS:
            raise InputError(f"speed={self.speed}: use one of {', '.join(_SPEEDS)}")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the new frames."""
        scale = self.short_side / min(height, width)
        new_height, new_width = (min(size // 2, round(size * scale / 2)) * 2 for size in (height, width))
        return new_height, new_width

    @property
    def encoder_options(self) -> dict[str, str]:
        """Options of libx264."""
        return {
            "preset": self.speed,
            "tune": "fastdecode",
            "crf": str(self.crf),
            "g": str(self.gop),
            "keyint_min": str(self.gop),
            "sc_threshold": "0",  # no key frame in between
            "bf": str(self.b_frames),
            "b_strategy": "0",  # as many everywhere, so that a frame costs the same whatever the clip shows
            "b-pyramid": "none",  # no frame refers to them
            "threads": "1",  # the bytes depend on their number
            # with it x264 (core 165) now and then gives other bytes for equal frames, small ones at least
            "mbtree": "0",
        }


class EncodedVideo(NamedTuple):
    """A new mp4 file."""

    data: bytes
    duration_s: float


class _Timing(NamedTuple):
    """When the new frames are shown."""

    ticks: list[int]
    last: int
    """Ticks for which the last frame is shown."""
    tick_s: Fraction

    @property
    def delay(self) -> int:
        """The longest time in ticks from one frame to the next."""
        return max((after - before for before, after in pairwise(self.ticks)), default=0)


def encode_video(
    data: bytes,
    preset: VideoPreset,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    limits: Limits | None = None,
) -> EncodedVideo:
    """Encode the pictures of a video anew, turned upright; sound and other tracks are left out.

    Args:
        data: A whole video file.
        preset: How.
        start_s: Begin of the part to keep, in seconds after the first frame; its first frame is then at 0.
        end_s: End of that part; frames shown at ``end_s`` or later do not belong to it.
        limits: What to refuse from the header; the default ``Limits()`` if None.

    Raises:
        DecodeError: The bytes cannot be used; as every frame is decoded, damage of any one is found.
        SampleError: ``segment_outside`` when the part begins after the clip ends, ``not_encodable`` when the encoder
            refuses the frames, such as those wider than 16,384 pixels.
    """
    with open_video(data, limits or Limits()) as (opened, index):
        if start_s is not None and start_s >= index.duration_s:
            raise SampleError("segment_outside")
        first, last = window(index, start_s, end_s)
        numbers = _thinned(index, first, last, preset.max_fps)
        stop_s = float(index.times_s[last - 1]) + 1.0 / index.fps
        frames = _decoded(lambda: coded_frames(data, opened, index, numbers))
        leading = next(frames)
        timing = _timing(index, numbers, stop_s, leading)
        file = _encoded(chain([leading], frames), timing, preset, index)
    return EncodedVideo(file, stop_s - float(index.times_s[first]))


def encode_sound(samples: NDArray[np.float32], sample_rate_hz: int) -> bytes:
    """Write mono samples [S] in [-1, 1] as a FLAC file of 16 bits."""
    import av

    integers = np.clip(np.rint(samples * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate_hz, 0, Fraction(1, sample_rate_hz)
    file = BytesIO()
    with av.open(file, "w", format="flac", container_options={"fflags": "bitexact"}) as output:
        stream = output.add_stream("flac", rate=sample_rate_hz, layout="mono", options={"flags": "+bitexact"})
        stream.codec_context.format = "s16"
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def _thinned(index: VideoIndex, first: int, last: int, max_fps: float | None) -> list[int]:
    """Numbers of the frames to keep, of those from first to last - 1."""
    if max_fps is None or index.fps <= max_fps:
        return list(range(first, last))
    times_s = index.times_s[first:last] - index.times_s[first]
    moments_s = np.arange(int(times_s[-1] * max_fps + _ROUNDING_S) + 1) / max_fps
    shown = np.searchsorted(times_s, moments_s + _ROUNDING_S, side="right") - 1
    return [first + int(number) for number in np.unique(shown)]


def _decoded(read: Callable[[], Iterator[Any]]) -> "Iterator[VideoFrame]":
    """Frames of the decoder; only what goes wrong in it, and not in who takes them, becomes a ``DecodeError``."""
    with codec_errors():
        yield from read()


def _timing(index: VideoIndex, numbers: Sequence[int], stop_s: float, frame: "VideoFrame") -> _Timing:
    """Keep the source's own ticks, so that no time is rounded; without trustworthy ones frames are evenly spaced."""
    if index.timestamps is None or frame.time_base is None:
        tick_s = 1 / Fraction(index.fps).limit_denominator(1001)
        ticks = [number - numbers[0] for number in numbers]
    else:
        tick_s = frame.time_base
        ticks = [index.timestamps[number] - index.timestamps[numbers[0]] for number in numbers]
    rest = round((stop_s - float(index.times_s[numbers[-1]])) / float(tick_s))
    return _Timing(ticks, max(rest, 1), tick_s)


def _encoded(frames: "Iterator[VideoFrame]", timing: _Timing, preset: VideoPreset, index: VideoIndex) -> bytes:
    import av

    file = BytesIO()
    # frames may be shown before the time they are stored under, so that no edit list has to hide a delay
    options = {"fflags": "bitexact", "movflags": "faststart+negative_cts_offsets"}
    rate = Fraction(len(timing.ticks), timing.ticks[-1] + timing.last) / timing.tick_s
    places = iter(timing.ticks)
    with (
        _encoder_errors(),
        # to put the header in front, the muxer reads what it has written
        av.open(file, "w", format="mp4", container_options=options, io_open=lambda *_: BytesIO(file.getvalue())) as mp4,
    ):
        stream = mp4.add_stream("libx264", rate=rate.limit_denominator(1 << 30), options=preset.encoder_options)
        coder = stream.codec_context
        coder.pix_fmt, coder.time_base = "yuv420p", timing.tick_s
        for frame, tick in zip(_upright(frames, preset.size(index.height, index.width)), timing.ticks, strict=True):
            if not coder.is_open:
                coder.width, coder.height = frame.width, frame.height
                coder.colorspace, coder.color_range = frame.colorspace, frame.color_range
                coder.color_primaries, coder.color_trc = frame.color_primaries, frame.color_trc
            frame.pts, frame.time_base = tick, timing.tick_s
            _mux(mp4, stream.encode(frame), places, timing)
        _mux(mp4, stream.encode(None), places, timing)
    return file.getvalue()


def _mux(output: Any, packets: Any, places: Iterator[int], timing: _Timing) -> None:
    """Store packets in the rhythm of the frames, the i-th one at the time of the i-th frame less a delay.

    A frame that B-frames refer to is stored before them, but no frame more than one place behind its own, so the delay
    is enough; and the file is exactly as long as its frames are shown.
    """
    for packet in packets:
        packet.dts = next(places) - timing.delay
        packet.duration = timing.last  # the muxer takes that of the last packet alone, which would be guessed
        output.mux(packet)


@contextmanager
def _encoder_errors() -> Iterator[None]:
    import av.error

    try:
        yield
    except av.error.FFmpegError as error:
        raise SampleError("not_encodable") from error


def _upright(frames: "Iterator[VideoFrame]", size: tuple[int, int]) -> "Iterator[VideoFrame]":
    """Scale frames to height and width of a coded frame, then turn them; their colours are tagged as they were."""
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

    reformatter = VideoReformatter()
    method = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    for frame in frames:
        rgb = frame.format.is_rgb
        with codec_errors():
            scaled = reformatter.reformat(
                frame,
                size[1],
                size[0],
                "yuv420p",
                dst_colorspace=Colorspace.ITU601 if rgb else None,
                dst_color_range=ColorRange.MPEG if rgb else None,
                interpolation=method,
                threads=1,
            )
            planes = scaled.to_ndarray().astype(np.uint8, copy=False)
        # a frame made anew has no picture type and no side data of the source, which the encoder would obey
        plain = av.VideoFrame.from_ndarray(_turned(planes, round(frame.rotation / 90) % 4), format="yuv420p")
        plain.colorspace, plain.color_range = scaled.colorspace, scaled.color_range
        plain.color_primaries, plain.color_trc = scaled.color_primaries, scaled.color_trc
        yield plain


def _turned(planes: NDArray[np.uint8], quarters: int) -> NDArray[np.uint8]:
    """Turn 4:2:0 planes [3/2 H, W], which lie one behind the other, by quarters against the clock."""
    if quarters == 0:
        return planes
    height, width = len(planes) * 2 // 3, planes.shape[1]
    luma = np.rot90(planes[:height], quarters)
    chroma = np.rot90(planes[height:].reshape(2, height // 2, width // 2), quarters, axes=(1, 2))
    return np.concatenate([luma.ravel(), chroma.ravel()]).reshape(-1, luma.shape[1])

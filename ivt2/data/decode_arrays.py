"""Video, image and audio bytes to numpy arrays: all of decoding but the tensors, so that it runs without torch.

A decoder process (``ivt2/data/isolation.py``) imports this and nothing larger.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ivt2.data import decode_decord, decode_pyav
from ivt2.data.containers import VIDEO_CONTAINERS, DecodeError, Limits, check_complete, sniff
from ivt2.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer

Backend = Literal["auto", "decord", "pyav"]
Choose = Callable[[int, float], Sequence[int]]
"""Gets the number of frames and the frames per second, returns frame numbers."""

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")


class VideoArrays(NamedTuple):
    """Chosen frames of a video, and what they were chosen from."""

    pixels: NDArray[np.uint8]
    """RGB [T, H, W, C]."""
    num_frames: int
    fps: float
    duration_s: float


def available_backends() -> tuple[str, ...]:
    """Return the back ends that work here; ``pyav`` always does."""
    return ("pyav",) if decode_decord.load_decord() is None else ("decord", "pyav")


def check_backend(backend: str) -> None:
    """Refuse a back end that is not installed.

    Raises:
        InputError: naming those that are.
    """
    if backend not in {"auto", *available_backends()}:
        raise InputError(f"decoder {backend} is not installed: use one of auto, {', '.join(available_backends())}")


def check_numbers(numbers: Sequence[int], num_frames: int) -> list[int]:
    """Return frame numbers as plain integers.

    Raises:
        IndexError: none are asked for, or one that is not there.
    """
    chosen = [int(number) for number in numbers]
    if not chosen or min(chosen) < 0 or max(chosen) >= num_frames:
        raise IndexError(f"frames {chosen} asked for, of {num_frames}")
    return chosen


def read_video(
    data: bytes,
    choose: Choose,
    *,
    backend: Backend,
    limits: Limits,
    start_s: float | None,
    end_s: float | None,
    by_time: bool,
    allocate: decode_pyav.Allocate = decode_pyav.allocate_pixels,
) -> VideoArrays:
    """Decode the frames that ``choose`` asks for; arguments and errors are those of ``decode.decode_video``.

    ``allocate`` makes room for pixels, which do not always end up there.
    """
    with open_video(data, limits) as (opened, index):
        first, last = window(index, start_s, end_s)
        chosen = check_numbers(choose(last - first, index.fps), last - first)
        if by_time:
            chosen = _shown_at(index.times_s[first:last], chosen, 1.0 / index.fps)
        wanted = sorted(set(chosen))
        numbers = [first + number for number in wanted]
        if backend == "decord":
            pixels = decode_decord.decode_frames(data, index, numbers)
        else:
            pixels = decode_pyav.decode_frames(data, opened, index, numbers, allocate=allocate)
    if wanted != chosen:
        pixels = pixels[np.searchsorted(wanted, chosen)]
    duration_s = float(index.times_s[last - 1] - index.times_s[first]) + 1.0 / index.fps
    return VideoArrays(pixels, last - first, index.fps, duration_s)


@contextmanager
def open_video(data: bytes, limits: Limits) -> "Iterator[tuple[InputContainer, decode_pyav.VideoIndex]]":
    """Open a video and read its index; what may not be decoded is refused.

    Raises:
        DecodeError: The bytes are no whole video, or exceed ``limits``.
    """
    limits.check_bytes(data)
    container = sniff(data)
    if container is None or container not in VIDEO_CONTAINERS:
        raise DecodeError("not_video", f"{len(data)} bytes that are no known video container")
    check_complete(data, container)
    with decode_pyav.open_container(data, container) as opened:
        yield opened, decode_pyav.read_index(opened, container, limits)


def window(index: decode_pyav.VideoIndex, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """Return the numbers of the first frame within a time span and of the first behind it.

    Raises:
        DecodeError: ``empty`` if no frame is shown then.
    """
    slack_s = 1e-6  # a frame shown at the very second that an annotation names belongs to it
    first = 0 if start_s is None else int(np.searchsorted(index.times_s, start_s - slack_s))
    last = index.num_frames if end_s is None else int(np.searchsorted(index.times_s, end_s - slack_s))
    if first >= last:
        raise DecodeError("empty", f"no frame from {start_s} to {end_s} s of {index.duration_s:.2f} s")
    return first, last


def _shown_at(times_s: NDArray[np.float64], numbers: Sequence[int], last_s: float) -> list[int]:
    """Return the frames on the screen in the middle of parts of equal length, one part for each frame that there is.

    Part and frame have the same number where the frame rate is constant.
    """
    span_s = float(times_s[-1] - times_s[0]) + last_s
    middles_s = times_s[0] + (np.asarray(numbers) + 0.5) * (span_s / len(times_s))
    return [int(number) for number in np.searchsorted(times_s, middles_s, side="right") - 1]


def read_image(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Decode an image to RGB [H, W, C]; arguments and errors are those of ``decode.decode_image``."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    limits.check_bytes(data)
    try:
        with Image.open(BytesIO(data), formats=_IMAGE_FORMATS) as image:
            limits.check_frame(image.height, image.width)
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise DecodeError("not_image", f"{len(data)} bytes that are no {', '.join(_IMAGE_FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise DecodeError("truncated" if "truncated" in str(error).lower() else "corrupt", str(error)) from error


def read_audio(
    data: bytes, *, sample_rate_hz: int, limits: Limits, start_s: float | None, end_s: float | None
) -> NDArray[np.float32] | None:
    """Decode the first audio track to mono [S]; arguments and errors are those of ``audio.decode_audio``."""
    limits.check_bytes(data)
    container = sniff(data)
    if container is None:
        raise DecodeError("not_audio", f"{len(data)} bytes that are no known audio or video container")
    check_complete(data, container)
    with decode_pyav.open_container(data, container) as opened:
        if not opened.streams.audio:
            return None
        limits.check_length(0, (opened.duration or 0) / 1_000_000)
        first = round((start_s or 0.0) * sample_rate_hz)
        longest = round(limits.max_duration_s * sample_rate_hz)
        last = longest if end_s is None else min(round(end_s * sample_rate_hz), longest)
        with decode_pyav.codec_errors():
            parts = list(_cut(_samples(opened, sample_rate_hz), first, last))
    if not parts:
        raise DecodeError("empty", f"no sound from {start_s} to {end_s} s")
    return np.concatenate(parts)


def _samples(opened: "InputContainer", sample_rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """Decode and resample piece by piece; channels are averaged here, as the library would weigh them otherwise."""
    from av.audio.resampler import AudioResampler

    stream = opened.streams.audio[0]
    resampler = AudioResampler(format="fltp", rate=sample_rate_hz)
    for frame in opened.decode(stream):
        yield from _arrays(resampler.resample(frame))
    yield from _arrays(resampler.resample(None))


def _arrays(frames: list[Any]) -> Iterator[NDArray[np.float32]]:
    for frame in frames:
        yield frame.to_ndarray().mean(axis=0, dtype=np.float32)


def _cut(pieces: Iterator[NDArray[np.float32]], first: int, last: int) -> Iterator[NDArray[np.float32]]:
    """Keep the samples numbered first to last - 1."""
    position = 0
    for piece in pieces:
        part = piece[max(first - position, 0) : max(last - position, 0)]
        position += len(piece)
        if len(part):
            yield part
        if position >= last:
            return

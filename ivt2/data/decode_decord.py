"""Frames through decord, for the files that it reads exactly as PyAV does.

decord 0.6.0 carries an old FFmpeg: it sees nothing whose container and header have not been checked first. Damage it
cannot report: wrong pixels come silently, and rarely the process dies (3 of 450 mp4 files with sound and flipped bits).
"""

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from ivt2.data.containers import DecodeError
from ivt2.data.decode_pyav import VideoIndex

_CONTAINERS = frozenset({"mov", "matroska"})
_CODECS = frozenset({"h264", "hevc", "mpeg4", "vp9"})
_PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p", "yuv444p", "gray"})


@cache
def load_decord() -> ModuleType | None:
    """Return the library with its messages switched off, or None where it is not installed."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.FATAL)
    return decord  # type: ignore[no-any-return]


def suits(index: VideoIndex) -> bool:
    """Whether decord reads such a file and finds the right frames in it.

    It does not where an edit list hides frames (it counts them), in AVI and behind the key frames of open groups of
    pictures (its seek lands beside the target), nor for more than 8 bits per channel (its conversion differs).
    """
    return (
        index.container in _CONTAINERS
        and index.codec in _CODECS
        and index.pixel_format in _PIXEL_FORMATS
        and index.timestamps is not None
        and index.num_video_streams == 1
        and not index.trimmed
        and not index.open_gop
    )


def decode_frames(data: bytes, index: VideoIndex, wanted: Sequence[int]) -> NDArray[np.uint8]:
    """Decode frames by number; RGB pixels [T, H, W, C], turned upright.

    Raises:
        DecodeError: The library fails, counts other frames than the index, or is not meant for this file.
    """
    decord = load_decord()
    if decord is None or not suits(index):
        raise DecodeError("unsupported_codec", f"decord does not read {index.codec} in {index.container} of this kind")
    try:
        reader = decord.VideoReader(BytesIO(data), num_threads=1)
        num_frames = len(reader)
        pixels: NDArray[np.uint8] | None = (
            reader.get_batch(wanted).asnumpy() if num_frames == index.num_frames else None
        )
    except (decord.DECORDError, RuntimeError, IndexError, ValueError, AssertionError) as error:
        raise DecodeError("corrupt", str(error).strip().splitlines()[0]) from error
    if pixels is None:
        raise DecodeError("corrupt", f"decord counts {num_frames} frames, the packets {index.num_frames}")
    return np.asarray(pixels)

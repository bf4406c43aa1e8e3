"""Video and image bytes to uint8 pixels, or a ``DecodeError`` that says why not.

Bytes are accepted by content, refused by header, then decoded; all back ends give the same frames or refuse.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ivt2.data import decode_decord, decode_pyav
from ivt2.data.containers import VIDEO_CONTAINERS, DecodeError, Limits, Reason, check_complete, sniff
from ivt2.errors import InputError

__all__ = [
    "Backend",
    "DecodeError",
    "DecodedVideo",
    "Limits",
    "Reason",
    "available_backends",
    "decode_image",
    "decode_video",
]

Backend = Literal["auto", "decord", "pyav"]

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class DecodedVideo:
    """Chosen frames of a video, and what they were chosen from.

    Attributes:
        frames: RGB pixels; in memory the channels stand last.
        num_frames: Frames to choose from: all of the video, or those between ``start_s`` and ``end_s``.
        fps: Average frames per second.
        duration_s: Length of what there was to choose from.
        backend: Library that decoded.
    """

    frames: UInt8[Tensor, "T C H W"]
    num_frames: int
    fps: float
    duration_s: float
    backend: str


def available_backends() -> tuple[str, ...]:
    """Return the back ends that work here; ``pyav`` always does."""
    return ("pyav",) if decode_decord.load_decord() is None else ("decord", "pyav")


def decode_video(
    data: bytes,
    choose: Callable[[int, float], Sequence[int]],
    *,
    backend: Backend = "auto",
    limits: Limits | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> DecodedVideo:
    """Decode the frames that ``choose`` asks for.

    Args:
        data: A whole mp4/mov, Matroska/WebM, AVI, MPEG-TS, Ogg or GIF file.
        choose: Gets the number of frames and the frames per second, returns frame numbers, in any order, also repeated.
            Frames are numbered in the order in which they are shown; what an edit list hides is not counted.
        backend: ``auto`` is PyAV: as fast, and it reports damage that decord decodes to wrong pixels or dies of.
            ``decord`` is for files that are known to be whole.
        limits: What to refuse from the header; the default ``Limits()`` if None.
        start_s: Begin of the part to choose from, in seconds after the first frame.
        end_s: End of that part; frames shown at ``end_s`` or later do not belong to it.

    Raises:
        DecodeError: The bytes cannot be used.
        InputError: The back end is not installed.
        IndexError: ``choose`` asks for a frame that is not there.
    """
    if backend not in ("auto", *available_backends()):
        raise InputError(f"decoder {backend} is not installed: use one of auto, {', '.join(available_backends())}")
    limits = limits or Limits()
    limits.check_bytes(data)
    container = sniff(data)
    if container is None or container not in VIDEO_CONTAINERS:
        raise DecodeError("not_video", f"{len(data)} bytes that are no known video container")
    check_complete(data, container)
    with decode_pyav.open_container(data, container) as opened:
        index = decode_pyav.read_index(opened, container, limits)
        first, last = _window(index, start_s, end_s)
        chosen = [int(number) for number in choose(last - first, index.fps)]
        if not chosen or min(chosen) < 0 or max(chosen) >= last - first:
            raise IndexError(f"frames {chosen} asked for, of {last - first}")
        wanted = sorted(set(chosen))
        numbers = [first + number for number in wanted]
        if backend == "decord":
            pixels = decode_decord.decode_frames(data, index, numbers)
        else:
            pixels = decode_pyav.decode_frames(data, opened, index, numbers)
    if wanted != chosen:
        pixels = pixels[np.searchsorted(wanted, chosen)]
    duration_s = float(index.times_s[last - 1] - index.times_s[first]) + 1.0 / index.fps
    frames = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return DecodedVideo(frames, last - first, index.fps, duration_s, "decord" if backend == "decord" else "pyav")


def _window(index: decode_pyav.VideoIndex, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """Return the numbers of the first frame within a time span and of the first behind it."""
    slack_s = 1e-6  # a frame shown at the very second that an annotation names belongs to it
    first = 0 if start_s is None else int(np.searchsorted(index.times_s, start_s - slack_s))
    last = index.num_frames if end_s is None else int(np.searchsorted(index.times_s, end_s - slack_s))
    if first >= last:
        raise DecodeError("empty", f"no frame from {start_s} to {end_s} s of {index.duration_s:.2f} s")
    return first, last


def decode_image(data: bytes, limits: Limits | None = None) -> UInt8[Tensor, "1 C H W"]:
    """Decode a JPEG, PNG or WebP image to RGB, turned as its EXIF orientation says.

    Raises:
        DecodeError: The bytes are no such image, are damaged, or exceed ``limits``.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    limits = limits or Limits()
    limits.check_bytes(data)
    try:
        with Image.open(BytesIO(data), formats=_IMAGE_FORMATS) as image:
            limits.check_frame(image.height, image.width)
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise DecodeError("not_image", f"{len(data)} bytes that are no {', '.join(_IMAGE_FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise DecodeError("truncated" if "truncated" in str(error).lower() else "corrupt", str(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]

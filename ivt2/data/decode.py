"""Video and image bytes to uint8 pixels, or a ``DecodeError`` that says why not.

Bytes are accepted by content, refused by header, then decoded; all back ends give the same frames or refuse.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ivt2.data.containers import DecodeError, Limits, Reason
from ivt2.data.decode_arrays import Backend, Choose, available_backends, check_backend, read_image, read_video
from ivt2.data.isolation import DecoderProcess

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


def decode_video(
    data: bytes,
    choose: Choose,
    *,
    backend: Backend = "auto",
    limits: Limits | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    by_time: bool = False,
    process: DecoderProcess | None = None,
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
        by_time: Divide the time evenly instead of the frames: number ``i`` of ``n`` is then the frame on the screen in
            the middle of the ``i``-th of ``n`` equal parts. At a constant frame rate that is the same frame.
        process: Decodes in place of this process, which then outlives whatever a codec library does.

    Raises:
        DecodeError: The bytes cannot be used.
        InputError: The back end is not installed.
        IndexError: ``choose`` asks for a frame that is not there.
    """
    check_backend(backend)
    read = read_video if process is None else process.read_video
    video = read(
        data, choose, backend=backend, limits=limits or Limits(), start_s=start_s, end_s=end_s, by_time=by_time
    )
    frames = torch.from_numpy(np.ascontiguousarray(video.pixels)).permute(0, 3, 1, 2)
    name = "decord" if backend == "decord" else "pyav"
    return DecodedVideo(frames, video.num_frames, video.fps, video.duration_s, name)


def decode_image(
    data: bytes, limits: Limits | None = None, *, process: DecoderProcess | None = None
) -> UInt8[Tensor, "1 C H W"]:
    """Decode a JPEG, PNG or WebP image to RGB, turned as its EXIF orientation says.

    Args:
        data: A whole file.
        limits: What to refuse from the header; the default ``Limits()`` if None.
        process: Decodes in place of this process.

    Raises:
        DecodeError: The bytes are no such image, are damaged, or exceed ``limits``.
    """
    read = read_image if process is None else process.read_image
    return torch.from_numpy(read(data, limits or Limits())).permute(2, 0, 1)[None]

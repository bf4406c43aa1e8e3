"""Media files of the embedded datasets, in the containers that the published ones come in; equal bytes each time."""

import io
import wave
from typing import Literal, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ivt2.data.synthetic import FPS, Scene
from ivt2.data.synthetic_media import GROUP_SIZE, encode_mp4
from ivt2.data.synthetic_render import SAMPLE_RATE_HZ, render, waveform
from ivt2.data.synthetic_sounds import Sound, sound_waveform

IMAGE_SIZE = 64
"""Side of the square frames in pixels."""

_JPEG_QUALITY = 92
_SILENT = {
    "webm": ("webm", "libvpx", {"deadline": "realtime", "cpu-used": "8", "threads": "1"}),
    "avi": ("avi", "mpeg4", {"threads": "1"}),
}
_SILENT_BIT_RATE = 400_000


class Media(NamedTuple):
    """A media file to be.

    Args:
        kind: mp4 has H.264 and AAC; webm (VP8) and avi (MPEG-4) are silent; frames are numbered JPEG files; jpg is the
            frame in the middle of the event, where size and place of the first object are those that are said.
        content: scenes that the clip shows one after the other; the sound for wav.
    """

    kind: Literal["mp4", "webm", "avi", "frames", "jpg", "wav"]
    content: tuple[Scene, ...] | Sound

    @property
    def num_files(self) -> int:
        """How many files there are: one, or as many as frames."""
        if self.kind != "frames" or isinstance(self.content, Sound):
            return 1
        return sum(scene.num_frames for scene in self.content)


def encode_media(media: Media) -> tuple[bytes, ...]:
    """Render and encode.

    Returns:
        The file; for frames all of them, in order.
    """
    if isinstance(media.content, Sound):
        return (_wav(sound_waveform(media.content)),)
    if media.kind == "jpg":
        (scene,) = media.content
        return (_jpeg(render(scene, IMAGE_SIZE)[(scene.start_frame + scene.end_frame) // 2]),)
    frames = np.concatenate([render(scene, IMAGE_SIZE) for scene in media.content])
    if media.kind == "frames":
        return tuple(map(_jpeg, frames))
    if media.kind == "mp4":
        samples = np.concatenate([waveform(scene) for scene in media.content])
        return (encode_mp4(frames, samples, fps=FPS, sample_rate_hz=SAMPLE_RATE_HZ),)
    return (_silent(frames, media.kind),)


def _silent(frames: NDArray[np.uint8], kind: str) -> bytes:
    container_format, codec, options = _SILENT[kind]
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format=container_format, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=FPS, options={**options, "flags": "+bitexact"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size, stream.bit_rate = "yuv420p", GROUP_SIZE, _SILENT_BIT_RATE
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _wav(samples: NDArray[np.int16]) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()

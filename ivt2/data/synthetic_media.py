"""Encoder of the embedded dataset: H.264 pixels and AAC sound in an mp4, the same bytes for the same input.

One encoder thread, no B frames, no dates in the file: with the same libraries the bytes are equal from run to run.
"""

import io
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from ivt2.data.synthetic import FPS, Scene
from ivt2.data.synthetic_render import SAMPLE_RATE_HZ, render, waveform

GROUP_SIZE = 8
"""A key frame every so many frames: a random frame costs at most so many decoded ones."""
_VIDEO_OPTIONS = {"preset": "ultrafast", "crf": "18", "bf": "0", "sc_threshold": "0", "threads": "1"}
_AUDIO_BIT_RATE = 32_000


def encode_scene(scene: Scene, image_size: int) -> bytes:
    """Render a scene and encode it.

    Args:
        scene: what to show.
        image_size: side of the square frame in pixels; even, as 4:2:0 chroma demands.

    Returns:
        The mp4 file.
    """
    return encode_mp4(render(scene, image_size), waveform(scene), fps=FPS, sample_rate_hz=SAMPLE_RATE_HZ)


def encode_mp4(frames: NDArray[np.uint8], samples: NDArray[np.int16], *, fps: int, sample_rate_hz: int) -> bytes:
    """Encode pixels and sound.

    Args:
        frames: [T, H, W, 3] in RGB, H and W even.
        samples: mono, as long as the frames.
        fps: frames per second.
        sample_rate_hz: samples per second.

    Returns:
        The mp4 file.
    """
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=fps, options=_VIDEO_OPTIONS)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.gop_size = GROUP_SIZE
        audio = container.add_stream("aac", rate=sample_rate_hz, layout="mono")
        audio.bit_rate = _AUDIO_BIT_RATE
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(samples[None].astype(np.float32) / 32768, format="fltp", layout="mono")
        sound.sample_rate, sound.time_base, sound.pts = sample_rate_hz, Fraction(1, sample_rate_hz), 0
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return buffer.getvalue()

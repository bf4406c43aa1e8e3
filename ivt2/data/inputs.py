"""What people have - files, bytes, arrays, pictures, sounds - as the tensors that released networks take."""

import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Union

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from ivt2.data.audio import decode_audio
from ivt2.data.containers import VIDEO_CONTAINERS, DecodeError, Limits, sniff
from ivt2.data.decode import decode_image, decode_video
from ivt2.data.decode_pyav import open_container
from ivt2.data.sampling import middle
from ivt2.data.sound import SAMPLE_RATE_HZ, ten_seconds
from ivt2.data.transforms import resize
from ivt2.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

VideoSource = Union[str, Path, bytes, Tensor, np.ndarray, "Image"]
"""A file or its bytes, pixels [T, H, W, 3], [T, 3, H, W], [H, W, 3] or [3, H, W] as uint8, or a picture."""
AudioSource = str | Path | bytes | tuple[Tensor | np.ndarray, int]
"""A file or its bytes, or samples in [-1, 1] of shape [S] or [channels, S] with their rate in Hz."""

_RGB = 3

_Source = TypeVar("_Source")


class ClipTransform:
    """A video or a picture to the clip that an encoder takes.

    Frames are the middle ones of equal segments; each is resized to a square whatever its shape, bicubic, without a
    crop. A picture, and a video file of one frame, becomes a clip of one frame. Pixels stay uint8: the encoder
    normalises them.

    Args:
        num_frames: Frames of the clip; shorter videos repeat their last one.
        image_size: Side of the square in pixels.
        antialias: Widen the kernel when shrinking, as this package's evaluation does. The published scores were
            measured without it.
        limits: What to refuse; the default ``Limits()`` if None.

    Source: reference multi_modality, sampling type ``middle`` and test transform (spec stage2 sections 3.3 and 3.4).
    """

    def __init__(
        self, num_frames: int, image_size: int, *, antialias: bool = True, limits: Limits | None = None
    ) -> None:
        self.num_frames = num_frames
        self.image_size = image_size
        self.antialias = antialias
        self.limits = limits or Limits()

    def __call__(self, source: VideoSource) -> UInt8[Tensor, "T C H W"]:
        """Read, choose frames, resize.

        Raises:
            InputError: The source cannot be used: what it is and why not.
        """
        try:
            frames = self._frames(source)
        except DecodeError as error:
            raise InputError(f"{_describe(source)}: cannot be used as video or picture ({error})") from error
        return resize(frames, self.image_size, self.image_size, antialias=self.antialias).contiguous()

    def _frames(self, source: VideoSource) -> UInt8[Tensor, "T C H W"]:
        if isinstance(source, str | Path | bytes):
            data = read_bytes(source, self.limits)
            if sniff(data) not in VIDEO_CONTAINERS:
                return decode_image(data, self.limits)
            return decode_video(data, lambda length, _: middle(length, self.num_frames), limits=self.limits).frames
        pixels = _pixels(source)
        if pixels.ndim == 4:
            pixels = pixels[middle(len(pixels), self.num_frames)]
            return pixels.permute(0, 3, 1, 2) if pixels.shape[-1] == _RGB else pixels
        return (pixels.permute(2, 0, 1) if pixels.shape[-1] == _RGB else pixels)[None]


class AudioTransform:
    """A sound to the log-mel energies that an audio encoder takes: ten seconds, 998 rows.

    A longer sound gives its middle ten seconds. A shorter one is filled up: with silence where it is a sound of its
    own, with rows of zeros where it is the track of a video, each as in training.

    Args:
        num_mels: Mel bins: 64 for InternVideo2's audio encoder, 128 for BEATs itself.
        limits: What to refuse; the default ``Limits()`` if None.

    Source: reference multi_modality, audio dataset (spec stage2 section 3.5), which takes the ten seconds at random.
    """

    def __init__(self, num_mels: int = 64, *, limits: Limits | None = None) -> None:
        self.num_mels = num_mels
        self.limits = limits or Limits()

    def __call__(self, source: AudioSource) -> Float32[Tensor, "F M"]:
        """Read, mix to one channel at 16 kHz, cut or fill up, transform.

        Raises:
            InputError: The source cannot be used: what it is and why not.
        """
        try:
            samples, of_video = self._samples(source)
        except DecodeError as error:
            raise InputError(f"{_describe(source)}: cannot be used as sound ({error})") from error
        return ten_seconds(samples, of_video=of_video, num_mels=self.num_mels)

    def _samples(self, source: AudioSource) -> tuple[Float32[Tensor, "S"], bool]:
        """Samples at 16 kHz, and whether they came with moving pictures."""
        if isinstance(source, tuple):
            return _resample(*_check_samples(source)), False
        data = read_bytes(source, self.limits)
        samples = decode_audio(data, sample_rate_hz=SAMPLE_RATE_HZ, limits=self.limits)
        if samples is None:
            raise InputError(f"{_describe(source)}: has no audio track; give another file or the samples themselves")
        return samples, _has_pictures(data)


def each(sources: Sequence[_Source], transform: Callable[[_Source], Tensor], *, kind: str) -> Iterator[Tensor]:
    """Transform one after the other, and say which one failed.

    Args:
        sources: What to transform.
        transform: Raises ``InputError`` for what it cannot use.
        kind: What the sources are, for the message.

    Raises:
        InputError: The first failure, with its position counted from 0.
    """
    for index, source in enumerate(sources):
        try:
            yield transform(source)
        except InputError as error:
            raise InputError(f"{kind} {index} of {len(sources)}: {error}") from error


def read_bytes(source: str | Path | bytes, limits: Limits) -> bytes:
    """Content of a file that is not too large; bytes pass.

    Raises:
        InputError: The file cannot be read.
        DecodeError: It is too large.
    """
    if isinstance(source, bytes):
        return source
    path, remedy = Path(source), "download it first" if "://" in str(source) else "check the path"
    try:
        facts = path.stat()
        if stat.S_ISREG(facts.st_mode):  # a device may never end, a pipe never begin
            if facts.st_size > limits.max_bytes:
                raise DecodeError("too_many_bytes", f"{facts.st_size} bytes, at most {limits.max_bytes}")
            return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise InputError(f"{source}: cannot be read ({getattr(error, 'strerror', error)}); {remedy}") from error
    raise InputError(f"{source}: is not a file; {remedy}")


def _pixels(source: VideoSource) -> Tensor:
    """Pixels of an array or a picture, with three channels in the place where one can tell them."""
    from PIL.Image import Image
    from PIL.ImageOps import exif_transpose

    if isinstance(source, Image):
        return torch.from_numpy(np.array(exif_transpose(source).convert("RGB")))
    if not isinstance(source, np.ndarray | Tensor):
        raise InputError(f"{type(source).__name__} is no video: give a path, bytes, uint8 pixels or a picture")
    shape = list(source.shape)
    if source.dtype not in {torch.uint8, np.dtype(np.uint8)}:
        raise InputError(f"{_describe(source)}: pixels are {source.dtype}; give uint8 from 0 to 255")
    if len(shape) not in {3, 4} or _RGB not in {shape[-1], shape[-3]} or not all(shape):
        raise InputError(f"{_describe(source)}: give [T, H, W, 3], [T, 3, H, W], [H, W, 3] or [3, H, W]")
    return source if isinstance(source, Tensor) else torch.from_numpy(np.ascontiguousarray(source))


def _describe(source: object) -> str:
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    if isinstance(source, np.ndarray | Tensor):
        return f"array {list(source.shape)}"
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def _check_samples(source: tuple[Tensor | np.ndarray, int]) -> tuple[Float32[Tensor, "S"], int]:
    remedy = "give (samples, rate): floats in [-1, 1] of shape [S] or [channels, S], and Hz"
    if len(source) != 2 or not isinstance(source[0], np.ndarray | Tensor) or not isinstance(source[1], int):
        raise InputError(f"this tuple is no sound: {remedy}")
    samples, rate_hz = torch.as_tensor(source[0]), source[1]
    if not samples.is_floating_point() or samples.ndim not in {1, 2} or not samples.numel() or rate_hz < 1:
        raise InputError(f"samples {samples.dtype} {list(samples.shape)} at {rate_hz} Hz are no sound: {remedy}")
    return (samples if samples.ndim == 1 else samples.mean(dim=0)).float(), rate_hz


def _resample(samples: Float32[Tensor, "S"], rate_hz: int) -> Float32[Tensor, "S_16k"]:
    """With the resampler that files go through."""
    if rate_hz == SAMPLE_RATE_HZ:
        return samples
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler

    frame = AudioFrame.from_ndarray(samples.numpy()[None], format="fltp", layout="mono")
    frame.sample_rate = rate_hz
    resampler = AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE_HZ)
    parts = [part.to_ndarray()[0] for part in [*resampler.resample(frame), *resampler.resample(None)]]
    return torch.from_numpy(np.concatenate(parts))


def _has_pictures(data: bytes) -> bool:
    container = sniff(data)
    if container is None or container not in VIDEO_CONTAINERS:
        return False
    with open_container(data, container) as opened:
        return bool(opened.streams.video)

"""The sound of a sample as the log-mel energies that an audio encoder takes: ten seconds, 998 rows of 64."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from ivt2.data.audio import decode_audio
from ivt2.data.containers import DecodeError
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import SampleError
from ivt2.data.tar_index import AUDIO_TYPES, VIDEO_TYPES
from ivt2.ops.filterbank import log_mel_features

SAMPLE_RATE_HZ = 16_000
AUDIO_S = 10
"""Length of the sound that audio encoders get. Source: reference multi_modality, ``max_audio_length``."""
NUM_ROWS = 998
"""Frames of 25 ms, one every 10 ms, that lie within ten seconds."""
NUM_MELS = 64
"""Mel bins of InternVideo2's audio encoder."""

_FRAME = SAMPLE_RATE_HZ // 40
_TYPES = {"audio": AUDIO_TYPES, "video": VIDEO_TYPES, "either": (*AUDIO_TYPES, *VIDEO_TYPES)}


def ten_seconds(
    samples: Float32[Tensor, "S"],
    *,
    of_video: bool,
    num_mels: int = NUM_MELS,
    generator: np.random.Generator | None = None,
) -> Float32[Tensor, "F M"]:
    """Cut or fill up a sound to ten seconds and take its log-mel energies.

    Args:
        samples: Mono in [-1, 1] at 16 kHz.
        of_video: A shorter sound is filled up with rows of zeros, as the track of a video is; otherwise with silence
            before the transform, as a sound of its own is.
        num_mels: Mel bins.
        generator: Draws where the ten seconds of a longer sound begin; None takes its middle.

    Source: reference multi_modality, audio reading (spec stage2 section 3.5).
    """
    wanted = AUDIO_S * SAMPLE_RATE_HZ
    spare = max(len(samples) - wanted, 0)
    start = int(generator.integers(spare + 1)) if generator is not None and spare else spare // 2
    samples = samples[start : start + wanted]
    samples = functional.pad(samples, (0, max((_FRAME if of_video else wanted) - len(samples), 0)))
    return log_mel_features(samples, num_mels=num_mels, num_frames=NUM_ROWS)


@dataclass(frozen=True, kw_only=True)
class SoundReader:
    """Finds, decodes and transforms the sound of a sample.

    Args:
        read_from: The ``audio`` member of the sample, the track of its ``video``, or the ``video``'s sound wherever it
            is: in a member, as preparation leaves it, or else in its track (``either``).
        missing: A sample without sound is left out (``skip``) or gets rows of zeros (``pad``).
        crop: Ten seconds of a longer sound, at ``random`` for training or from the ``middle``.
    """

    read_from: Literal["audio", "video", "either"] = "audio"
    missing: Literal["skip", "pad"] = "skip"
    crop: Literal["random", "middle"] = "middle"

    def read(
        self,
        members: Mapping[str, bytes],
        generator: np.random.Generator,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        process: DecoderProcess | None = None,
    ) -> Float32[Tensor, "F M"]:
        """Read the sound of a sample; nothing is drawn where there is no choice.

        Args:
            members: Of the sample.
            generator: Draws the crop.
            start_s: Begin of the part to choose from, in seconds.
            end_s: End of that part.
            process: Decodes in place of this process.

        Raises:
            SampleError: Reason ``audio_missing``, if such samples are to be left out.
            DecodeError: The bytes cannot be used.
        """
        types = _TYPES[self.read_from]
        data = next((members[kind] for kind in types if kind in members), None)
        samples = None if data is None else _decoded(data, start_s, end_s, process)
        if samples is None and self.missing == "skip":
            raise SampleError("audio_missing")
        if samples is None:
            return torch.zeros(NUM_ROWS, NUM_MELS)
        return ten_seconds(
            samples, of_video=self.read_from != "audio", generator=generator if self.crop == "random" else None
        )


def _decoded(
    data: bytes, start_s: float | None, end_s: float | None, process: DecoderProcess | None
) -> Float32[Tensor, "S"] | None:
    """Samples; None where the file has no track, or the track nothing in this part."""
    try:
        return decode_audio(data, sample_rate_hz=SAMPLE_RATE_HZ, start_s=start_s, end_s=end_s, process=process)
    except DecodeError as error:
        if error.reason == "empty":
            return None
        raise

"""Preparation: what becomes of a record's media before they are packed.

Three things, each by choice: cutting out the part that the record describes, encoding video anew so that few frames
are cheap to read, and sound as a member of its own. Whatever is not asked for keeps its bytes.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivt2.data.annotations import Annotation, segment_of
from ivt2.data.containers import DecodeError, Limits
from ivt2.data.decode_arrays import read_audio
from ivt2.data.ledger import SampleError
from ivt2.data.tar_index import AUDIO_TYPES, VIDEO_TYPES
from ivt2.data.transcoding import VideoPreset, encode_sound, encode_video
from ivt2.errors import InputError

__all__ = ["Preparation", "VideoPreset"]

_SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Prepares the media of one record after another; without arguments it leaves them as they are.

    Images always stay as they are.

    Args:
        trim: keep only what the record's ``start_s`` and ``end_s`` enclose. Frames are those that ``trim`` of a
            ``ClipReader`` chooses from; sound is cut to the sample.
        video: encode video anew. The new file holds the pictures alone.
        audio: add the sound of a video as a member of its own: FLAC, mono, 16 kHz. A video without sound gets none.

    Raises:
        InputError: ``trim`` without ``video``.
    """

    trim: bool = False
    video: VideoPreset | None = None
    audio: bool = False

    def __post_init__(self) -> None:
        if self.trim and self.video is None:
            raise InputError(
                "trim=true: video can only be cut between key frames unless it is encoded anew; "
                "choose a preset with it, such as preparation=sparse"
            )

    def __call__(self, kind: str, data: bytes, record: Annotation) -> tuple[dict[str, bytes], Annotation]:
        """Prepare one file.

        Args:
            kind: type of the file, one of ``tar_index.MEMBER_TYPES``.
            data: the whole file.
            record: what is said of it.

        Returns:
            Members of the sample by type, and the record that describes them: times relative to the new clip, those of
            the source kept as the facts ``source_start_s``, ``source_end_s`` and ``source_duration_s``.

        Raises:
            SampleError: the file or the record cannot be used; a word of the decoder, ``segment_invalid``,
                ``segment_outside``, ``not_audio`` or ``not_encodable``.
        """
        times = segment_of({"start_s": record.start_s, "end_s": record.end_s}) if self.trim else (0.0, math.inf)
        try:
            if kind in VIDEO_TYPES:
                return self._prepare_video(kind, data, record, times)
            if kind in AUDIO_TYPES and times != (0.0, math.inf):
                return _cut_audio(data, record, times)
        except DecodeError as error:
            raise SampleError(error.reason) from error
        return {kind: data}, record

    def facts(self) -> dict[str, Any]:
        """Return the arguments, in types that json knows: equal ones prepare equal files alike."""
        return asdict(self)

    def _prepare_video(
        self, kind: str, data: bytes, record: Annotation, times: tuple[float, float]
    ) -> tuple[dict[str, bytes], Annotation]:
        members = {kind: data}
        if self.video is not None:
            encoded = encode_video(data, self.video, start_s=times[0], end_s=times[1])
            members = {"mp4": encoded.data}
            record = _described(record, encoded.duration_s, trimmed=self.trim)
        sound = _sound(data, times) if self.audio else None
        if sound is not None and len(sound):  # the track may end before the pictures do
            members["flac"] = encode_sound(sound, _SAMPLE_RATE_HZ)
        return members, record


def _sound(data: bytes, times: tuple[float, float]) -> NDArray[np.float32] | None:
    """Samples between two times of the first audio track, none if it ends before; None without a track."""
    end_s = None if math.isinf(times[1]) else times[1]
    try:
        return read_audio(data, sample_rate_hz=_SAMPLE_RATE_HZ, limits=Limits(), start_s=times[0], end_s=end_s)
    except DecodeError as error:
        if error.reason == "empty":
            return np.empty(0, dtype=np.float32)
        raise


def _cut_audio(data: bytes, record: Annotation, times: tuple[float, float]) -> tuple[dict[str, bytes], Annotation]:
    samples = _sound(data, times)
    if samples is None:
        raise SampleError("not_audio")
    if not len(samples):
        raise SampleError("segment_outside")
    described = _described(record, len(samples) / _SAMPLE_RATE_HZ, trimmed=True)
    return {"flac": encode_sound(samples, _SAMPLE_RATE_HZ)}, described


def _described(record: Annotation, duration_s: float, *, trimmed: bool) -> Annotation:
    """The record with the times of the new file."""
    former = {"source_duration_s": record.facts.get("duration_s")}
    if trimmed:
        former |= {"source_start_s": record.start_s, "source_end_s": record.end_s}
        record = replace(record, start_s=None, end_s=None)
    known = {name: value for name, value in former.items() if value is not None}
    return replace(record, facts={**record.facts, **known, "duration_s": round(duration_s, 6)})

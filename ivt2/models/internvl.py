"""InternVL-C's vision encoder as a teacher of clips."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.teacher import Teacher, TeacherFeatures


class InternVLTeacher(Teacher):
    """A network of images that looks at each frame of a clip by itself.

    The patches of the frames stand side by side; their CLS tokens and pooled vectors are averaged over the frames,
    before they are normalised.

    Args:
        encoder: InternVL-C's vision encoder, which is an ``InternVideo2`` of one frame (48 blocks of width 3200).
        taps: See ``Teacher``; the published runs tap the last six blocks.
        normalize: See ``Teacher``.

    Raises:
        InputError: if the encoder takes more than one frame.

    Source: reference single_modality and multi_modality, internvl_clip_vision.py.
    """

    encoder: InternVideo2

    def __init__(self, encoder: InternVideo2, *, taps: Sequence[int], normalize: bool = True) -> None:
        if encoder.num_frames != 1:
            raise InputError(f"the encoder takes clips of {encoder.num_frames} frames: build it with num_frames=1")
        super().__init__(encoder, taps=taps, normalize=normalize)

    def _features(self, video: Tensor) -> TeacherFeatures:
        num_clips, num_frames = video.shape[:2]
        encoded = self.encoder(video.flatten(0, 1).unsqueeze(1), taps=self.taps)
        attention = self.encoder.clip_projector.attention_map(encoded.tokens)[:, 1:]
        frames = torch.unflatten(encoded.intermediates, 1, (num_clips, num_frames))
        cls, patches = frames[..., :1, :].mean(dim=2), frames[..., 1:, :].flatten(2, 3)
        final = torch.unflatten(encoded.pooled, 0, (num_clips, num_frames)).mean(dim=1)
        return TeacherFeatures(torch.cat([cls, patches], dim=2), final, attention)

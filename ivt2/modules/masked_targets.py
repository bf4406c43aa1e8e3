"""What frozen teachers say about the visible part of a clip, and which part that is.

    mask = the patches that a draw in proportion to the teacher's attention leaves out (or a tube, or at random)
    target = unit(teacher(clip)[visible])

Letters: B clips, V masks of each clip, F frames of a clip in the batch, T those of the student, N patches of a clip as
the student cuts it, Nv visible ones. Rows of V * B stand view after view.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.teacher import Teacher, TeacherFeatures
from ivt2.modules.teacher_checks import check_finite, check_patches
from ivt2.ops.masking import Masking, check_mask_ratio, draw_mask, num_visible, visible_indices
from ivt2.ops.random import Stream, uniform

Role = Literal["clip", "mae"]
"""Which branch of the student learns from a teacher."""


class Targets(NamedTuple):
    """One training step of every student."""

    video: UInt8[Tensor, "V*B T C H W"] | Float[Tensor, "V*B T C H W"]
    masked: Bool[Tensor, "V*B N"]
    visible: Int64[Tensor, "V*B Nv"]
    """Positions of the patches that are not hidden, ascending."""
    said: Mapping[Role, TeacherFeatures]
    """What each teacher says of the CLS token and the visible patches, and its pooled vector: unit vectors."""


class MaskedTargets:
    """Asks each teacher once about a clip, hides most of it, and keeps what was said about the rest.

    Teachers are held outside of any module: they are files that were released before, so they are neither saved in
    checkpoints nor seen by the optimizer, and keep their own number format whatever the Trainer's precision.

    A batch has as many frames as the network with the longest tubelet needs. A network of tubelet t sees every
    (longest / t)-th frame: beside a teacher with tubelets of two frames, 16 frames are 8 for the student and for a
    teacher of single frames, the first one of each tubelet.

    Args:
        teachers: One or two of them.
        encoder: The student's encoder, whose patches are hidden.
        masking: ``attention`` draws in proportion to the attention of the teacher ``clip``: in each frame by itself
            where the teacher looks at single frames, in the whole clip where it looks at that; ``tube`` hides the same
            patches in every frame, ``random`` any in the clip.
        mask_ratio: Share of hidden patches in [0, 1).
        masks_per_clip: Number V of masks of each clip; the teachers are asked once.
        whiten: Teachers whose tokens are whitened over the global batch. Where most of a token is the same in all, as
            in small teachers that were trained on little, the cosine says hardly anything of the rest.

    Raises:
        InputError: No teacher, a teacher that cuts clips into other patches than the student, attention masks without
            a teacher that has attention, or a mask ratio or number of masks out of range.

    Source: reference single_modality, engines of pre-training and of distillation.
    """

    def __init__(
        self,
        teachers: Mapping[Role, Teacher],
        *,
        encoder: InternVideo2,
        masking: Masking,
        mask_ratio: float,
        masks_per_clip: int,
        whiten: Sequence[Role] = (),
    ) -> None:
        check_mask_ratio(mask_ratio)
        if masks_per_clip < 1:
            raise InputError(f"masks_per_clip={masks_per_clip} leaves nothing to learn: use 1 or more")
        if not teachers:
            raise InputError("no teacher is left to learn from: give one, and a weight above 0 to what it teaches")
        if masking == "attention" and ("clip" not in teachers or not teachers["clip"].gives_attention):
            raise InputError(
                "masking=attention needs a clip_teacher that has attention: give one, or use masking=tube or random"
            )
        if set(whiten) - set(teachers):
            raise InputError(f"whiten={list(whiten)}: name some of the teachers that are asked, {', '.join(teachers)}")
        self._teachers = dict(teachers)
        self._whiten = frozenset(whiten)
        self._masking, self._mask_ratio, self._masks_per_clip = masking, mask_ratio, masks_per_clip
        self._grid_frames, self._patches = encoder.grid_frames, encoder.num_patches_per_frame
        self._longest = max(encoder.tubelet_size, *(each.encoder.tubelet_size for each in teachers.values()))
        for role, teacher in teachers.items():
            check_patches(f"{role}_teacher", teacher, encoder)
            self._stride(f"{role}_teacher", teacher.encoder.tubelet_size)
        self.stride = self._stride("student", encoder.tubelet_size)
        self.num_frames = encoder.num_frames * self.stride

    def check_weights(self) -> None:
        """Refuse teachers that cannot say anything.

        Raises:
            InputError: A weight is not finite.
        """
        for role, teacher in self._teachers.items():
            check_finite(f"{role}_teacher", teacher)

    def to(self, device: torch.device) -> None:
        """Move the teachers.

        Args:
            device: Where batches come.
        """
        for teacher in self._teachers.values():
            teacher.to(device)

    def __call__(
        self, video: UInt8[Tensor, "B F C H W"] | Float[Tensor, "B F C H W"], seed: Int64[Tensor, "B"]
    ) -> Targets:
        """Frames, masks and targets of a batch.

        Args:
            video: RGB pixels, uint8 or already normalised.
            seed: Key of each clip; a mask depends on it, on its number among the clip's masks and on what the teacher
                attends to.

        Raises:
            InputError: The batch has another number of frames than its networks need.
        """
        if video.shape[1] != self.num_frames:
            raise InputError(
                f"clips have {video.shape[1]} frames, student and teachers need {self.num_frames}: set the "
                f"datamodule's num_frames={self.num_frames}"
            )
        said = {role: self._ask(role, video) for role in self._teachers}
        attention = said["clip"].attention if self._masking == "attention" else None
        masked = self._draw(seed, attention)
        shown = self._num_visible(attention)
        visible = torch.stack([visible_indices(mask, shown) for mask in masked])
        kept = {role: _of_views(features, masked, visible) for role, features in said.items()}
        frames = video[:, :: self.stride].repeat(self._masks_per_clip, 1, 1, 1, 1)
        return Targets(frames, masked.flatten(0, 1), visible.flatten(0, 1), kept)

    def _num_visible(self, attention: Tensor | None) -> int:
        """Of a clip; known without a look at the masks, for which the device would have to be waited for."""
        together = self._patches if self._masking == "tube" else self._grid_frames * self._patches
        if attention is not None:
            together = attention.shape[1]
        return self._grid_frames * self._patches // together * num_visible(together, self._mask_ratio)

    def _stride(self, name: str, tubelet_size: int) -> int:
        if self._longest % tubelet_size:
            raise InputError(f"{name}: tubelets of {tubelet_size} frames do not divide those of {self._longest} frames")
        return self._longest // tubelet_size

    def _ask(self, role: Role, video: Tensor) -> TeacherFeatures:
        """Not normalised: most tokens are about to be dropped."""
        teacher = self._teachers[role]
        frames = video[:, :: self._longest // teacher.encoder.tubelet_size]
        with torch.autocast(video.device.type, enabled=False):
            features = teacher.unnormalized(frames)
            return features.whitened() if role in self._whiten else features

    def _draw(self, seed: Tensor, attention: Tensor | None) -> Bool[Tensor, "V B N"]:
        num_patches = self._grid_frames * self._patches
        noise = uniform(seed, self._masks_per_clip * num_patches, Stream.TEACHER_PATCHES)
        views = noise.view(len(seed), self._masks_per_clip, num_patches).unbind(1)
        masks = [draw_mask(self._masking, view, self._mask_ratio, self._grid_frames, attention) for view in views]
        return torch.stack(masks)


def _of_views(
    features: TeacherFeatures, masked: Bool[Tensor, "V B N"], visible: Int64[Tensor, "V B Nv"]
) -> TeacherFeatures:
    views = [features.visible(mask, index).normalized() for mask, index in zip(masked, visible, strict=True)]
    final = None if features.final is None else torch.cat([view.final for view in views if view.final is not None])
    return TeacherFeatures(torch.cat([view.middle for view in views], dim=1), final, None)

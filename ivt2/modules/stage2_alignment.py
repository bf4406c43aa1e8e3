"""Unmasked teacher alignment (UTA): what the student makes of its visible tokens, against a teacher of whole clips.

loss = mean(2 - 2 cos) over aligned layers, clips and visible tokens
     + mean(2 - 2 cos) over clips, where student and teacher both have a pooled vector
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ivt2.errors import InputError
from ivt2.losses.feature_alignment import two_level_alignment_loss
from ivt2.models.internvideo2 import Encoded, taps_from_end
from ivt2.models.stage2 import Stage2Model
from ivt2.models.teacher import Teacher, TeacherFeatures
from ivt2.modules.teacher_checks import check_decoders, check_finite, check_patches
from ivt2.nn.aligning import FeatureDecoder
from ivt2.ops.distributed import global_mean

_WHERE, _WHOSE, _REMEDY = "module.model.clip_decoders", "module.teacher", "leave the term uta out"


class TeacherAlignment:
    """Asks a frozen teacher about whole clips and compares what it says of the visible tokens.

    The teacher is held outside of any module: it is a file that was released before, so it is neither saved in
    checkpoints nor seen by the optimizer, and keeps its own number format whatever the Trainer's precision.

    Attributes:
        taps: Blocks of the student whose tokens are compared, the last ones.

    Args:
        teacher: Sees the same frames as the student.
        model: The student, with decoders towards this teacher.
        attends: Masks will follow what the teacher attends to.

    Raises:
        InputError: The teacher cuts clips into other patches, has no attention where masks shall follow it, or the
            decoders do not give what it says.

    Source: reference multi_modality, ``encode_teacher`` and ``new_UTA_Loss``; both levels weigh the same there.
    """

    def __init__(self, teacher: Teacher, model: Stage2Model, *, attends: bool) -> None:
        decoders = model.clip_decoders
        check_decoders(decoders, teacher, pooled=False, where=_WHERE, whose=_WHOSE, remedy=_REMEDY)
        assert decoders is not None, "checked above"
        self._pooled = isinstance(decoders.final, FeatureDecoder) and teacher.final_dim is not None
        if self._pooled:
            check_decoders(decoders, teacher, pooled=True, where=_WHERE, whose=_WHOSE, remedy=_REMEDY)
        encoder = model.vision_encoder
        check_patches(_WHOSE, teacher, encoder)
        if teacher.encoder.tubelet_size != encoder.tubelet_size:
            raise InputError(
                f"{_WHOSE}: sees tubelets of {teacher.encoder.tubelet_size} frames, the student of "
                f"{encoder.tubelet_size}: take a teacher with the same"
            )
        if attends and not teacher.gives_attention:
            raise InputError(f"masking=attention: {_WHOSE} has no attention to follow; use masking=random or tube")
        self.taps = taps_from_end(encoder.depth, len(decoders.decoders))
        self._teacher = teacher

    def check_weights(self) -> None:
        """Refuse a teacher that cannot say anything.

        Raises:
            InputError: A weight is not finite.
        """
        check_finite(_WHOSE, self._teacher)

    def to(self, device: torch.device) -> None:
        """Move the teacher.

        Args:
            device: Where batches come.
        """
        self._teacher.to(device)

    def ask(self, video: UInt8[Tensor, "B T C H W"] | Float[Tensor, "B T C H W"]) -> TeacherFeatures:
        """What the teacher says of whole clips, and what it attends to; not normalised.

        Args:
            video: Clips of the student's number of frames, or of one.
        """
        with torch.autocast(video.device.type, enabled=False):
            return self._teacher.unnormalized(video)

    def __call__(
        self,
        model: Stage2Model,
        encoded: Encoded,
        said: TeacherFeatures,
        masked: Bool[Tensor, "B N"] | None,
        *,
        image: bool,
    ) -> Float[Tensor, ""]:
        """This rank's share of the loss, whose mean over ranks is that of the global batch.

        Args:
            model: The student.
            encoded: What it made of the visible tokens, with the streams of ``taps``.
            said: What the teacher says of the same clips.
            masked: True where a patch was hidden from the student.
            image: The clips have one frame.
        """
        said = (said if masked is None else said.visible(masked)).normalized()
        aligned = model.align(encoded, masked, image=image)
        final = (aligned.final, said.final) if self._pooled and said.final is not None else None
        loss = two_level_alignment_loss((aligned.middle, said.middle), final)
        return global_mean(loss * len(encoded.pooled), len(encoded.pooled))

"""Stage 1: masked pre-training with two frozen teachers."""

from collections.abc import Mapping, Sequence

from ivt2.errors import InputError
from ivt2.models.stage1 import Stage1Student
from ivt2.models.teacher import Teacher
from ivt2.modules.masked_learning import MaskedLearning
from ivt2.modules.masked_targets import Role
from ivt2.modules.optimization import MakeOptimizer, MakeSchedule
from ivt2.ops.masking import Masking


class Stage1Module(MaskedLearning):
    """Trains a :class:`Stage1Student` on what one or two teachers say about its visible patches.

    Args:
        student: The network that learns.
        clip_teacher: Gives tokens, a pooled vector and the attention that masks follow (InternVL); None leaves it out.
        mae_teacher: Gives tokens alone, of tubelets of two frames (VideoMAE); None leaves it out.
        weights: See :class:`MaskedLearning`.
        optimizer: See :class:`MaskedLearning`.
        schedule: See :class:`MaskedLearning`.
        masking: ``attention``, ``tube`` or ``random``.
        mask_ratio: Share of hidden patches in [0, 1).
        masks_per_clip: Masks of each clip; the teachers, who cost most of a step, are asked once for all of them.
        whiten: Teachers, of ``clip`` and ``mae``, whose tokens are whitened; the paper does so with none.

    Raises:
        InputError: See :class:`MaskedLearning`.

    Source: InternVideo2 (arXiv:2403.15377) section 3.1; reference single_modality, pre-training.
    """

    def __init__(
        self,
        student: Stage1Student,
        *,
        clip_teacher: Teacher | None = None,
        mae_teacher: Teacher | None = None,
        weights: Mapping[str, float],
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        masking: Masking = "attention",
        mask_ratio: float = 0.8,
        masks_per_clip: int = 1,
        whiten: Sequence[Role] = (),
    ) -> None:
        given: dict[Role, Teacher | None] = {"clip": clip_teacher, "mae": mae_teacher}
        teachers = {role: teacher for role, teacher in given.items() if teacher is not None}
        if not teachers:
            raise InputError("stage 1 has no teacher: set module.clip_teacher, module.mae_teacher or both")
        super().__init__(
            {"": student},
            teachers,
            weights=weights,
            optimizer=optimizer,
            schedule=schedule,
            masking=masking,
            mask_ratio=mask_ratio,
            masks_per_clip=masks_per_clip,
            whiten=whiten,
        )
        self.student = student

    def named_students(self) -> dict[str, Stage1Student]:
        """The only student, whose name is empty."""
        return {"": self.student}

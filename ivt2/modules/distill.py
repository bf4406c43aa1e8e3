"""Distillation of a large video encoder into one small one, or into several at once."""

from collections.abc import Mapping

from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.optim import Optimizer

from ivt2.errors import InputError
from ivt2.models.stage1 import Stage1Student
from ivt2.models.teacher import Teacher
from ivt2.modules.masked_learning import MaskedLearning
from ivt2.modules.optimization import MakeOptimizer, MakeSchedule
from ivt2.ops.masking import Masking


class DistillModule(MaskedLearning):
    """Trains students on what one teacher says about the patches that all of them see.

    Several students share the teacher's pass, which costs most of a step, and the masks, and nothing else: gradients
    are clipped for each by itself and the optimizer has groups for each, so that each takes the steps that it would
    take alone, apart from what stochastic depth draws from torch's generator.

    Args:
        students: The networks that learn, by name; the name of an only one is not shown in logs.
        teacher: A larger InternVideo2, or another network of tokens and a pooled vector.
        weights: See :class:`MaskedLearning`; ``clip_middle`` and ``clip_final`` count here.
        optimizer: See :class:`MaskedLearning`; one for all students.
        schedule: See :class:`MaskedLearning`.
        masking: ``attention``, ``tube`` or ``random``.
        mask_ratio: Share of hidden patches in [0, 1).
        masks_per_clip: Masks of each clip; the teacher is asked once for all of them.

    Raises:
        InputError: No student; see :class:`MaskedLearning`.

    Source: InternVideo2 (arXiv:2403.15377), small models; reference single_modality, distillation.
    """

    def __init__(
        self,
        students: Mapping[str, Stage1Student],
        teacher: Teacher | None,
        *,
        weights: Mapping[str, float],
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        masking: Masking = "attention",
        mask_ratio: float = 0.8,
        masks_per_clip: int = 1,
    ) -> None:
        if teacher is None:
            raise InputError("distillation has no teacher: set module.teacher")
        if not students or any("." in name or not name for name in students):
            raise InputError(f"students={list(students)}: give at least one, with names without dots")
        super().__init__(
            students,
            {"clip": teacher},
            weights=weights,
            optimizer=optimizer,
            schedule=schedule,
            masking=masking,
            mask_ratio=mask_ratio,
            masks_per_clip=masks_per_clip,
        )
        self.students = nn.ModuleDict(students)

    def named_students(self) -> dict[str, Stage1Student]:
        """Students by name; the name of an only one is empty."""
        names = [""] if len(self.students) == 1 else list(self.students)
        found = [student for student in self.students.values() if isinstance(student, Stage1Student)]
        return dict(zip(names, found, strict=True))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the length of each student's gradient by itself."""
        by_length = gradient_clip_algorithm in {None, "norm"}
        # Torch's first FSDP cuts parameters so that lengths cannot be taken here: Lightning refuses that, in words.
        if not by_length or not gradient_clip_val or isinstance(self.trainer.strategy, FSDPStrategy):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for student in self.students.values():
            nn.utils.clip_grad_norm_(student.parameters(), gradient_clip_val)

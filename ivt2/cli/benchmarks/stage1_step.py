"""A training step of stage 1 on one device: how much of the device's peak rate its operations come to."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ivt2.cli.benchmarks.device_steps import DeviceCost, DeviceSteps
from ivt2.cli.benchmarks.flops import StepFlops, step_flops
from ivt2.cli.benchmarks.masked_steps import unscheduled
from ivt2.cli.benchmarks.timing import Figure

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

    from ivt2.batch import ClipBatch
    from ivt2.models.stage1 import Stage1Student
    from ivt2.models.teacher import Teacher, TeacherDtype
    from ivt2.modules.optimization import MakeOptimizer
    from ivt2.modules.stage1 import Stage1Module

WEIGHTS = {"clip_middle": 1.0, "clip_final": 1.0, "mae": 1.0}
GOALS = {"float8": (72.0, 90.0)}
"""Floor and aim by format of the teachers, in percent of the peak rate that the others' are measured by."""
DEFAULT_GOAL = (55.0, 65.0)


class Stage1StepSuite:
    """Whole steps of :class:`Stage1Module` on clips that lie on the device: teachers, masks, student, optimizer.

    The figure is the share of the peak rate that the step's operations come to (MFU), with the clips a second that it
    stands for. Operations are those of the networks: what is recomputed does not count. Formats are measured one after
    the other, for two sets of teachers would not leave the peak of memory to be seen.

    Args:
        student: the network that learns.
        clip_teacher: makes the teacher of tokens and a pooled vector in a format, ``dtype``.
        mae_teacher: makes the teacher of tubelets in a format.
        optimizer: makes the optimizer from parameter groups.
        teacher_dtypes: formats of the teachers; each is measured by itself.
        batch_sizes: clips of a step; each is measured by itself.
        mask_ratio: share of hidden patches in [0, 1).
        masks_per_clip: masks of each clip.
        bf16: whether the student computes in bfloat16, as with ``trainer.precision=bf16-mixed``.
        compile: whether the student's blocks are compiled; a teacher has an argument of its own.
        device: ``cuda`` or ``cpu``.
        peak_flops: operations a second that the device reaches at most in bfloat16, as measured or as its maker says.
        num_steps: measured steps of each figure.

    Raises:
        InputError: there is no step or no such device, or the peak rate is not positive.
    """

    def __init__(
        self,
        *,
        student: "Stage1Student",
        clip_teacher: "Callable[..., Teacher]",
        mae_teacher: "Callable[..., Teacher]",
        optimizer: "MakeOptimizer",
        teacher_dtypes: "Sequence[TeacherDtype]",
        batch_sizes: Sequence[int],
        mask_ratio: float,
        masks_per_clip: int,
        bf16: bool,
        compile: bool,
        device: str,
        peak_flops: float,
        num_steps: int,
    ) -> None:
        self.steps = DeviceSteps(device=device, peak_flops=peak_flops, num_steps=num_steps, bf16=bf16)
        self.student = student
        self.clip_teacher, self.mae_teacher = clip_teacher, mae_teacher
        self.optimizer = optimizer
        self.teacher_dtypes = list(teacher_dtypes)
        self.batch_sizes = list(batch_sizes)
        self.mask_ratio, self.masks_per_clip = mask_ratio, masks_per_clip
        self.compile = compile

    @property
    def turns(self) -> int:
        """Measured steps of all figures."""
        return self.steps.num_steps * len(self.batch_sizes) * len(self.teacher_dtypes)

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:  # noqa: ARG002
        """Yield the figures one by one."""
        flops = self.count()
        self.student.to(self.steps.device).train()
        if self.compile:
            for block in self.student.sharding_units():
                block.compile()
        for dtype in self.teacher_dtypes:
            module, optimizer = self._learner(dtype)
            for size in self.batch_sizes:
                batch = _clips(module.targets.num_frames, self.student.encoder.image_size, size, self.steps.device)
                cost = self.steps.measure(partial(module.training_step, batch, 0), self.student, optimizer, tick)
                yield self._figure(dtype, size, flops, cost)

    def count(self) -> StepFlops:
        """Operations of a step for one clip."""
        import torch

        with torch.device("meta"):
            teachers = [make(dtype="bfloat16") for make in (self.clip_teacher, self.mae_teacher)]
        return step_flops(self.student, teachers, mask_ratio=self.mask_ratio, masks_per_clip=self.masks_per_clip)

    def _learner(self, dtype: "TeacherDtype") -> "tuple[Stage1Module, Optimizer]":
        import torch

        from ivt2.modules.stage1 import Stage1Module
        from ivt2.optim.parameter_groups import parameter_groups

        with torch.device(self.steps.device):
            clip_teacher, mae_teacher = self.clip_teacher(dtype=dtype), self.mae_teacher(dtype=dtype)
        module = Stage1Module(
            self.student,
            clip_teacher=clip_teacher,
            mae_teacher=mae_teacher,
            weights=WEIGHTS,
            optimizer=self.optimizer,
            schedule=unscheduled,
            mask_ratio=self.mask_ratio,
            masks_per_clip=self.masks_per_clip,
        ).to(self.steps.device)
        module.setup("fit")
        module.on_fit_start()
        named, kept = self.student.named_parameters(), self.student.no_weight_decay()
        return module, self.optimizer(parameter_groups(named, no_weight_decay=kept))

    def _figure(self, dtype: str, size: int, flops: StepFlops, cost: DeviceCost) -> Figure:
        floor, aim = GOALS.get(dtype, DEFAULT_GOAL)
        return Figure(
            what=f"{size} clips, teachers in {dtype}",
            value=self.steps.share(size * flops.total, cost.seconds),
            unit="% of peak",
            floor=floor,
            aim=aim,
            details={
                "GFLOP a clip": flops.total / 1e9,
                "of them teachers %": 100 * flops.teachers / flops.total,
                **cost.details(size, "clips"),
            },
        )


def _clips(num_frames: int, image_size: int, size: int, device: "torch.device") -> "ClipBatch":
    """Random pixels."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    numbers = torch.arange(size, device=device)
    shape = (size, num_frames, 3, image_size, image_size)
    return {
        "video": torch.randint(256, shape, dtype=torch.uint8, generator=generator, device=device),
        "sample_id": numbers,
        "seed": numbers,
        "label": torch.full_like(numbers, -1),
        "key": [str(number) for number in range(size)],
        "source": "random",
        "skipped": [],
    }

"""What it gains several students to share the pass of one teacher."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

from ivt2.batch import ClipBatch
from ivt2.cli.benchmarks.masked_steps import MASK_RATIO, WEIGHTS, Recalled, Steps, clips, unscheduled, without_trainer
from ivt2.cli.benchmarks.timing import Cost, Figure, Quartiles, interleaved, speed_figure, timed
from ivt2.models.stage1 import Stage1Student
from ivt2.models.teacher import InternVideo2Teacher
from ivt2.modules.distill import DistillModule
from ivt2.modules.optimization import MakeOptimizer


class JointSuite:
    """One run of :class:`DistillModule` with all students against a run for each, by CPU time.

    n students that together cost s of a teacher's pass can gain ``(n + s) / (1 + s)``.

    Args:
        students: by name.
        teacher: of all of them.
        optimizer: makes the optimizer from parameter groups.
        num_clips: clips of a batch.
        pairs: turns of each side, of one step of every student.
    """

    def __init__(
        self,
        *,
        students: Mapping[str, Stage1Student],
        teacher: InternVideo2Teacher,
        optimizer: MakeOptimizer,
        num_clips: int,
        pairs: int,
    ) -> None:
        self.students = dict(students)
        self.teacher = teacher
        self.optimizer = optimizer
        self.num_clips = num_clips
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of the measurement."""
        return 2 * self.pairs

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:  # noqa: ARG002
        """Yield the figure."""
        batch, names = clips(next(iter(self.students.values())).encoder, self.num_clips), list(self.students)
        rests: dict[str, list[float]] = {name: [] for name in names}
        with without_trainer():
            recalled = Recalled(self.teacher, batch["video"])
            joint = self._steps(self.teacher, names, batch)
            alone, rest = (
                [self._steps(teacher, [name], batch) for name in names] for teacher in (self.teacher, recalled)
            )

            def separate() -> Cost:
                teacher = timed(partial(self.teacher.unnormalized, batch["video"]))
                for name, steps in zip(names, rest, strict=True):
                    rests[name].append(steps.take().cpu_s / teacher.cpu_s)
                costs = [steps.take() for steps in alone]
                return Cost(*map(sum, zip(*costs, strict=True)))

            comparison = interleaved(joint.take, separate, pairs=self.pairs, tick=tick)
        figure = speed_figure(
            f"{len(names)} students of one run against {len(names)} runs",
            comparison,
            sides=("joint", "apart"),
            items=self.num_clips,
            clock="cpu",
            floor=2.0,
            aim=2.5,
        )
        parts = {name: Quartiles.of(measured).median for name, measured in rests.items()}
        shares = {f"teacher's % of {name}": 100 / (1 + part) for name, part in parts.items()}
        total = sum(parts.values())
        gain = {"(n + s) / (1 + s)": (len(names) + total) / (1 + total)}
        yield replace(figure, details={**figure.details, **shares, **gain})

    def _steps(self, teacher: InternVideo2Teacher, names: Iterable[str], batch: ClipBatch) -> Steps:
        module = DistillModule(
            {name: deepcopy(self.students[name]) for name in names},
            teacher,
            weights=WEIGHTS,
            optimizer=self.optimizer,
            schedule=unscheduled,
            mask_ratio=MASK_RATIO,
        )
        return Steps(module, batch)

"""What several masks of a clip gain a student whose teacher costs most of a step."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

from ivt2.batch import ClipBatch
from ivt2.cli.benchmarks.masked_steps import MASK_RATIO, WEIGHTS, Recalled, Steps, clips, unscheduled, without_trainer
from ivt2.cli.benchmarks.timing import Cost, Figure, Quartiles, interleaved, speed_figure, timed
from ivt2.models.stage1 import Stage1Student
from ivt2.models.teacher import InternVideo2Teacher
from ivt2.modules.optimization import MakeOptimizer
from ivt2.modules.stage1 import Stage1Module


class ViewsSuite:
    """Views of clips that the student of :class:`Stage1Module` learns from in a second of CPU time.

    With a teacher that costs r times the rest of a step, V masks can gain ``V (r + 1) / (r + V)``, and more where a
    student's step costs less for each of many views than for one.

    Args:
        student: the network that learns.
        teacher: its only teacher.
        optimizer: makes the optimizer from parameter groups.
        masks_per_clip: masks of each clip, against one.
        num_clips: clips of a batch.
        pairs: turns of each side, of ``masks_per_clip * num_clips`` views.
    """

    def __init__(
        self,
        *,
        student: Stage1Student,
        teacher: InternVideo2Teacher,
        optimizer: MakeOptimizer,
        masks_per_clip: int,
        num_clips: int,
        pairs: int,
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.optimizer = optimizer
        self.masks_per_clip = masks_per_clip
        self.num_clips = num_clips
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of the measurement."""
        return 2 * self.pairs

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:  # noqa: ARG002
        """Yield the figure."""
        batch, views = clips(self.student.encoder, self.num_clips), self.masks_per_clip
        ratios: list[float] = []
        with without_trainer():
            many, single = (self._steps(self.teacher, masks, batch) for masks in (views, 1))
            rest = self._steps(Recalled(self.teacher, batch["video"]), 1, batch)

            def singles() -> Cost:
                teacher = timed(partial(self.teacher.unnormalized, batch["video"]))
                ratios.append(teacher.cpu_s / rest.take().cpu_s)
                return single.take(views)

            comparison = interleaved(many.take, singles, pairs=self.pairs, tick=tick)
        figure = speed_figure(
            f"student views a second, {views} masks of a clip against 1",
            comparison,
            sides=(f"V={views}", "V=1"),
            items=views * self.num_clips,
            clock="cpu",
            floor=2.5,
            aim=3.2,
        )
        ratio = Quartiles.of(ratios).median
        gain = {"teacher / rest of a step": ratio, "V (r + 1) / (r + V)": views * (ratio + 1) / (ratio + views)}
        yield replace(figure, details={**figure.details, **gain})

    def _steps(self, teacher: InternVideo2Teacher, masks_per_clip: int, batch: ClipBatch) -> Steps:
        module = Stage1Module(
            deepcopy(self.student),
            clip_teacher=teacher,
            weights=WEIGHTS,
            optimizer=self.optimizer,
            schedule=unscheduled,
            mask_ratio=MASK_RATIO,
            masks_per_clip=masks_per_clip,
        )
        return Steps(module, batch)

"""What a step gains where a teacher's answers are on disk."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from ivt2.checkpoint.feature_cache import CachedTeacher
from ivt2.cli.benchmarks.masked_steps import MASK_RATIO, WEIGHTS, Steps, clips, unscheduled, without_trainer
from ivt2.cli.benchmarks.timing import Figure, interleaved, speed_figure
from ivt2.models.stage1 import Stage1Student
from ivt2.models.teacher import InternVideo2Teacher, Teacher
from ivt2.modules.optimization import MakeOptimizer
from ivt2.modules.stage1 import Stage1Module


class CacheSuite:
    """Steps of :class:`Stage1Module` whose clips are all known, against steps that ask the teacher.

    With a teacher that costs r times the rest of a step, at most r + 1. Pages stay in memory: a disk that gives less
    than ``MB a clip`` in the time of a clip is the limit instead.

    Args:
        student: the network that learns.
        teacher: its only teacher.
        optimizer: makes the optimizer from parameter groups.
        num_clips: clips of a batch.
        pairs: turns of each side, of one step.
    """

    def __init__(
        self,
        *,
        student: Stage1Student,
        teacher: InternVideo2Teacher,
        optimizer: MakeOptimizer,
        num_clips: int,
        pairs: int,
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.optimizer = optimizer
        self.num_clips = num_clips
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of the measurement."""
        return 2 * self.pairs

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:
        """Yield the figure."""
        answers = folder / "answers"
        with without_trainer():
            known = self._steps(CachedTeacher(self.teacher, answers, max_gib=8.0))
            asking = self._steps(self.teacher)
            comparison = interleaved(known.take, asking.take, pairs=self.pairs, tick=tick)
        figure = speed_figure(
            "steps with the teacher's answers on disk",
            comparison,
            sides=("cache", "teacher"),
            items=self.num_clips,
            clock="cpu",
            floor=6.0,
            aim=8.0,
        )
        num_bytes = sum(path.stat().st_size for path in answers.rglob("*.safetensors"))
        yield replace(figure, details={**figure.details, "MB a clip": num_bytes / self.num_clips / 1e6})

    def _steps(self, teacher: Teacher) -> Steps:
        module = Stage1Module(
            deepcopy(self.student),
            clip_teacher=teacher,
            weights=WEIGHTS,
            optimizer=self.optimizer,
            schedule=unscheduled,
            mask_ratio=MASK_RATIO,
        )
        return Steps(module, clips(self.student.encoder, self.num_clips))

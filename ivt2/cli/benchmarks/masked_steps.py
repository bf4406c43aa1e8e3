"""Training steps of masked learning without a Trainer, on clips in memory, with and without their teacher's pass."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

from ivt2.batch import ClipBatch
from ivt2.cli.benchmarks.timing import Cost, timed
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.teacher import InternVideo2Teacher, TeacherFeatures
from ivt2.modules.masked_learning import MaskedLearning

WEIGHTS = {"clip_middle": 1.0, "clip_final": 1.0}
MASK_RATIO = 0.8


class Recalled(InternVideo2Teacher):
    """What a teacher has said of a batch, so that a step costs what it costs beside the teacher's pass.

    Args:
        teacher: that was asked.
        video: of the batch.
    """

    def __init__(self, teacher: InternVideo2Teacher, video: Tensor) -> None:
        super().__init__(teacher.encoder, taps=teacher.taps)
        self._said = teacher.unnormalized(video)

    def _features(self, video: Tensor) -> TeacherFeatures:  # noqa: ARG002
        return self._said


class Steps:
    """Whole training steps of a module: the teacher's pass, those of the students and back, and the optimizer's step.

    Args:
        module: with an optimizer of its own.
        batch: what every step learns from.
    """

    def __init__(self, module: MaskedLearning, batch: ClipBatch) -> None:
        self._module, self._batch = module.train(), batch
        self._optimizer = module.optimizer(module.optimizer_groups())
        self._advance(1)  # warms up

    def take(self, num: int = 1) -> Cost:
        """Cost of so many steps."""
        return timed(lambda: self._advance(num))

    def _advance(self, num: int) -> None:
        for _ in range(num):
            self._optimizer.zero_grad()
            torch.autograd.backward(self._module.training_step(self._batch, 0))
            self._optimizer.step()


def clips(encoder: InternVideo2, num_clips: int) -> ClipBatch:
    """Random pixels of the size that an encoder takes."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_clips, encoder.num_frames, 3, encoder.image_size, encoder.image_size)
    numbers = torch.arange(num_clips)
    return {
        "video": torch.randint(256, shape, dtype=torch.uint8, generator=generator),
        "sample_id": numbers,
        "seed": numbers,
        "label": torch.full_like(numbers, -1),
        "key": [str(number) for number in range(num_clips)],
        "source": "random",
        "skipped": [],
    }


def unscheduled(optimizer: Optimizer, total_steps: int) -> LRScheduler:  # noqa: ARG001
    """The rate as it is: what a schedule does costs nothing beside a step."""
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


@contextmanager
def without_trainer() -> Iterator[None]:
    """Modules log into nothing, without saying so each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are trying to `self.log")
        yield

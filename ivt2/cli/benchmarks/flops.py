"""Work of a network, counted on tensors without memory: what a device would need at its peak rate."""

from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ivt2.models.stage1 import Stage1Student
    from ivt2.models.teacher import Teacher

TRAINING = 3
"""Passes forward that a training step is worth: backwards there are two products for each one forward."""


class StepFlops(NamedTuple):
    """Floating-point operations for one clip; a multiplication with its addition counts as two."""

    student: int
    teachers: int

    @property
    def total(self) -> int:
        """Of a whole step of training."""
        return self.student + self.teachers


def step_flops(
    student: "Stage1Student", teachers: "list[Teacher]", *, mask_ratio: float, masks_per_clip: int = 1
) -> StepFlops:
    """Operations of a training step of stage 1 for one clip, what a device recomputes or copies left out.

    Args:
        student: whose patches are hidden frame by frame.
        teachers: each asked once about the clip with the frames that it takes; not quantised yet.
        mask_ratio: share of hidden patches in [0, 1).
        masks_per_clip: passes of the student.
    """
    import torch

    from ivt2.ops.masking import num_visible

    encoder = student.encoder
    video = pixels(encoder.num_frames, encoder.image_size)
    shown = encoder.grid_frames * num_visible(encoder.num_patches_per_frame, mask_ratio)
    visible = torch.empty(1, shown, dtype=torch.int64, device="meta")
    asked = 0
    for teacher in teachers:
        own = teacher.encoder
        frames = encoder.grid_frames if own.num_frames == 1 else own.num_frames
        asked += forward_flops(teacher, pixels(frames, own.image_size))
    return StepFlops(TRAINING * masks_per_clip * forward_flops(student, video, visible=visible), asked)


def forward_flops(network: "nn.Module", *given: object, **named: object) -> int:
    """Operations of one pass forward in evaluation mode; nothing is computed and the network is left as it is.

    Args:
        network: in memory or not.
        given: what it is called with, on the meta device.
        named: the same, by name.
    """
    import torch
    from torch.func import functional_call
    from torch.utils.flop_counter import FlopCounterMode

    state = {name: value.to("meta") for name, value in chain(network.named_parameters(), network.named_buffers())}
    training = network.training
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(network, state, given, named)
    network.train(training)
    return int(counter.get_total_flops())


def pixels(num_frames: int, image_size: int) -> "Tensor":
    """A clip without memory.

    Args:
        num_frames: of the clip.
        image_size: side of a frame in pixels.
    """
    import torch

    return torch.empty(1, num_frames, 3, image_size, image_size, dtype=torch.uint8, device="meta")

"""Whole training steps on one device: how long each takes, what share of the peak rate that is, and how much memory."""

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ivt2.cli.benchmarks.masked_steps import without_trainer
from ivt2.cli.benchmarks.timing import Quartiles
from ivt2.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

WARM_UPS = 3
"""Steps before the measured ones: they compile, and quantise teachers of float8."""
CLIP_NORM = 3.0


class DeviceCost(NamedTuple):
    """What steps took."""

    seconds: list[float]
    """Wall-clock time of each."""
    peak_bytes: int
    """The most memory that the device gave out during them; 0 where it does not say."""

    def details(self, size: int, item: str) -> dict[str, float]:
        """Speed and memory by name.

        Args:
            size: items of a step.
            item: what they are, such as ``clips``.
        """
        middle_s = Quartiles.of(self.seconds).median
        memory = {"peak memory GB": self.peak_bytes / 1e9} if self.peak_bytes else {}
        return {f"{item}/s": size / middle_s, "step ms": 1e3 * middle_s, **memory}


class DeviceSteps:
    """Takes whole steps, forward, backward, clipping of the gradient and optimizer, and measures them.

    Args:
        device: ``cuda`` or ``cpu``.
        peak_flops: operations a second that the device reaches at most in bfloat16, as measured or as its maker says.
        num_steps: measured steps.
        bf16: whether the network computes in bfloat16, as with ``trainer.precision=bf16-mixed``.

    Raises:
        InputError: there is no step or no such device, or the peak rate is not positive.
    """

    def __init__(self, *, device: str, peak_flops: float, num_steps: int, bf16: bool) -> None:
        if num_steps < 1:
            raise InputError(f"num_steps={num_steps}: must be at least 1")
        if not (math.isfinite(peak_flops) and peak_flops > 0):
            raise InputError(f"peak_flops={peak_flops}: give the device's rate, such as 788e12 for an H200")
        from ivt2.ops.device import usable_device

        self.device = usable_device(device)
        self.peak_flops = peak_flops
        self.num_steps = num_steps
        self.bf16 = bf16

    def measure(
        self, loss: "Callable[[], Tensor]", network: "nn.Module", optimizer: "Optimizer", tick: Callable[[], object]
    ) -> DeviceCost:
        """Take steps.

        Args:
            loss: computes it anew.
            network: what learns.
            optimizer: of its parameters.
            tick: called after every measured step.
        """
        import torch

        cuda = self.device.type == "cuda"
        seconds: list[float] = []
        with without_trainer():
            for number in range(WARM_UPS + self.num_steps):
                if cuda:
                    torch.cuda.synchronize(self.device)
                if cuda and number == WARM_UPS:
                    torch.cuda.reset_peak_memory_stats(self.device)
                start_s = time.perf_counter()
                self._step(loss, network, optimizer)
                if cuda:
                    torch.cuda.synchronize(self.device)
                if number >= WARM_UPS:
                    seconds.append(time.perf_counter() - start_s)
                    tick()
        return DeviceCost(seconds, torch.cuda.max_memory_allocated(self.device) if cuda else 0)

    def share(self, flops: float, seconds: Sequence[float]) -> Quartiles:
        """Percent of the peak rate.

        Args:
            flops: operations of a step.
            seconds: that each step took.
        """
        return Quartiles.of([100 * flops / (each * self.peak_flops) for each in seconds])

    def _step(self, loss: "Callable[[], Tensor]", network: "nn.Module", optimizer: "Optimizer") -> None:
        import torch

        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            value = loss()
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.step()

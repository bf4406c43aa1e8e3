"""A training step of stage 2 on one device: how much of the device's peak rate its operations come to."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ivt2.cli.benchmarks.device_steps import DeviceSteps
from ivt2.cli.benchmarks.masked_steps import unscheduled
from ivt2.cli.benchmarks.timing import Figure
from ivt2.errors import InputError

if TYPE_CHECKING:
    from ivt2.batch import MediaTextBatch
    from ivt2.cli.benchmarks.pair_flops import PairFlops
    from ivt2.models.stage2 import Stage2Model
    from ivt2.modules.optimization import MakeOptimizer
    from ivt2.modules.stage2 import Stage2Module

TERMS = {"vtc": 1.0, "vtm": 1.0, "mlm": 1.0}
MASKED_LM_PROBABILITY = 0.5
AIM = 55.0
"""Percent of the peak rate; there is no floor."""


class Stage2MfuSuite:
    """Whole steps of :class:`Stage2Module` on clips and captions that lie on the device.

    The figure is the share of the peak rate that the step's operations come to (MFU), with the pairs a second that it
    stands for. Operations are those of the networks: what is recomputed does not count. Captions fill their columns, so
    there is no padding to leave out.

    Args:
        model: the network.
        optimizer: makes the optimizer from parameter groups.
        batch_sizes: pairs of a step; each is measured by itself.
        mask_ratio: share of hidden patches in [0, 1).
        length: tokens of a caption.
        bf16: whether the network computes in bfloat16, as with ``trainer.precision=bf16-mixed``.
        compile: whether the blocks of the vision encoder are compiled.
        device: ``cuda`` or ``cpu``.
        peak_flops: operations a second that the device reaches at most in bfloat16, as measured or as its maker says.
        num_steps: measured steps of each figure.

    Raises:
        InputError: there is no step or no such device, the peak rate is not positive, or a batch or a caption is too
            small.
    """

    def __init__(
        self,
        *,
        model: "Stage2Model",
        optimizer: "MakeOptimizer",
        batch_sizes: Sequence[int],
        mask_ratio: float,
        length: int,
        bf16: bool,
        compile: bool,
        device: str,
        peak_flops: float,
        num_steps: int,
    ) -> None:
        if min(batch_sizes, default=0) < 2:
            raise InputError(f"batch_sizes={list(batch_sizes)}: matching needs at least 2 pairs")
        if not 3 <= length <= model.text_encoder.max_positions:
            raise InputError(f"length={length}: must be in [3, max_positions={model.text_encoder.max_positions}]")
        self.steps = DeviceSteps(device=device, peak_flops=peak_flops, num_steps=num_steps, bf16=bf16)
        self.model = model
        self.optimizer = optimizer
        self.batch_sizes = list(batch_sizes)
        self.mask_ratio = mask_ratio
        self.length = length
        self.compile = compile

    @property
    def turns(self) -> int:
        """Measured steps of all figures."""
        return self.steps.num_steps * len(self.batch_sizes)

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:  # noqa: ARG002
        """Yield the figures one by one."""
        from ivt2.optim.parameter_groups import parameter_groups

        flops, module = self.count(), self._learner()
        groups = parameter_groups(self.model.named_parameters(), no_weight_decay=self.model.no_weight_decay())
        optimizer = self.optimizer(groups)
        for size in self.batch_sizes:
            batch = self._batch(size)
            cost = self.steps.measure(partial(module.training_step, batch, 0), self.model, optimizer, tick)
            yield Figure(
                what=f"{size} pairs",
                value=self.steps.share(size * flops.total, cost.seconds),
                unit="% of peak",
                floor=0.0,
                aim=AIM,
                details={
                    "GFLOP a pair": flops.total / 1e9,
                    "of them text %": 100 * flops.text / flops.total,
                    **cost.details(size, "pairs"),
                },
            )

    def count(self) -> "PairFlops":
        """Operations of a step for one pair."""
        from ivt2.cli.benchmarks.pair_flops import pair_flops

        num_hidden = round(MASKED_LM_PROBABILITY * (self.length - 1))
        return pair_flops(self.model, mask_ratio=self.mask_ratio, length=self.length, num_hidden=num_hidden)

    def _learner(self) -> "Stage2Module":
        from ivt2.batch import Vocabulary
        from ivt2.modules.stage2 import Stage2Module

        module = Stage2Module(
            self.model,
            optimizer=self.optimizer,
            schedule=unscheduled,
            terms=TERMS,
            mask_ratio={"video": self.mask_ratio},
            masked_lm_probability=MASKED_LM_PROBABILITY,
        ).to(self.steps.device)
        size = self.model.text_encoder.vocab_size
        module.vocabulary = Vocabulary(size=size, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
        if self.compile:
            for block in self.model.vision_encoder.blocks:
                block.compile()
        return module.train()

    def _batch(self, size: int) -> "MediaTextBatch":
        """Random pixels and words."""
        import torch

        encoder, device = self.model.vision_encoder, self.steps.device
        generator = torch.Generator(device).manual_seed(0)
        numbers = torch.arange(size, device=device)
        shape = (size, encoder.num_frames, 3, encoder.image_size, encoder.image_size)
        words = (size, self.length)
        vocab_size = self.model.text_encoder.vocab_size
        return {
            "video": torch.randint(256, shape, dtype=torch.uint8, generator=generator, device=device),
            "input_ids": torch.randint(5, vocab_size, words, generator=generator, device=device),
            "valid": torch.ones(words, dtype=torch.bool, device=device),
            "sample_id": numbers,
            "seed": numbers,
            "key": [str(number) for number in range(size)],
            "medium": "video",
            "source": "random",
            "skipped": [],
        }

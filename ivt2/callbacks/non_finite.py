"""A loss or gradient that is no number costs one step, not the weights."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from ivt2.errors import InputError
from ivt2.ops.distributed import gather_objects
from ivt2.ops.sharding import local_part

_LOG = logging.getLogger(__name__)


class NonFinite(Callback):
    """Leaves an optimizer step out, on all ranks, where any rank has a non-finite loss or gradient norm.

    Weights and optimizer stay as they are, for an optimizer passes by parameters without a gradient; step count and
    schedule go on. The gradients are judged before clipping, with those of all accumulated batches, and by their norm:
    one whose square overflows would spoil the moments of Adam as a NaN does. The log names the samples of all ranks.
    Logs ``train/skipped_steps``, the number so far, at each log interval; a checkpoint keeps it.

    Args:
        abort_after: steps left out in a row that end the training.

    Raises:
        InputError: if ``abort_after`` is not positive.
    """

    def __init__(self, *, abort_after: int = 10) -> None:
        if abort_after < 1:
            raise InputError(
                f"abort_after={abort_after}: give at least 1 step; callbacks.non_finite=null leaves it out"
            )
        self.abort_after = abort_after
        self._skipped = 0
        self._in_a_row = 0
        self._samples: list[str] = []
        self._losses: list[Tensor] = []
        self._logged_step = -1

    @override
    def state_dict(self) -> dict[str, Any]:
        """Both counts."""
        return {"skipped": self._skipped, "in_a_row": self._in_a_row}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember which samples the step will have seen."""
        self._samples += _names(batch)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Remember the loss, without waiting for it."""
        self._losses.append(loss.detach())

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients away where the step must not be done.

        Raises:
            InputError: if too many steps in a row had to be left out; on all ranks.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = _norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        loss = torch.stack([loss.float() for loss in self._losses] or [torch.zeros(())]).sum()
        samples, self._samples, self._losses = self._samples, [], []
        device = trainer.strategy.root_device
        bad = ~(loss.to(device).isfinite() & norm.to(device).isfinite())
        if not trainer.strategy.reduce(bad.float(), reduce_op="sum") > 0:
            self._in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None
        self._skipped += 1
        self._in_a_row += 1
        self._report(trainer, f"loss {loss.item():g}, gradient norm {norm.item():g}", samples)
        if self._in_a_row >= self.abort_after:
            raise InputError(
                f"{self._in_a_row} steps in a row, up to step {trainer.global_step}, had a loss or gradient that is no "
                "number: lower optimizer.lr, set trainer.gradient_clip_val, or look at the samples that the log names"
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the count at each log interval."""
        step = trainer.global_step
        if step % trainer.log_every_n_steps == 0 and step != self._logged_step:  # type: ignore[attr-defined]
            self._logged_step = step
            pl_module.log("train/skipped_steps", float(self._skipped), on_step=True, on_epoch=False, batch_size=1)

    def _report(self, trainer: Trainer, numbers: str, samples: list[str]) -> None:
        """One line from the first rank, with what every rank had (all of them come here)."""
        ranks = gather_objects((numbers, samples))
        if trainer.is_global_zero:
            found = "; ".join(f"rank {rank}: {what}, {' '.join(keys)}" for rank, (what, keys) in enumerate(ranks))
            _LOG.warning("step %d is left out, its loss or gradient is no number: %s", trainer.global_step, found)


def _names(batch: Any) -> list[str]:
    """Samples of a batch as ``source/key``; nothing for a batch that does not name them."""
    if not isinstance(batch, Mapping) or "key" not in batch:
        return []
    source = batch.get("source")
    return [f"{source}/{key}" if source else str(key) for key in batch["key"]]


def _norm(gradients: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of what this rank holds of the gradients."""
    return torch.nn.utils.get_total_norm([local_part(gradient) for gradient in gradients])

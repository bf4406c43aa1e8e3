"""Exponential moving average of the weights, also of sharded ones."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from ivt2.errors import InputError
from ivt2.ops.sharding import local_part

KEY = "ema"


class ExponentialMovingAverage(Callback):
    """Keeps ``average = decay * average + (1 - decay) * weights`` after each optimizer step, from the first weights on.

    Averages the trainable parameters where they lie, so with ``fsdp2`` each rank keeps its shard; buffers and frozen
    parameters are those of the network. A checkpoint holds the weights as without this callback, and whole averages
    beside them, from which a run on any number of ranks goes on. Lightning's own callback copies the whole module,
    frozen teachers included, which sharded modules refuse, puts the averages in the place of the weights, and
    validates the end of an epoch without them.

    Args:
        decay: in [0, 1).
        evaluate: validate, test and probe with the averages. Those of the checkpoint, where one is tested.

    Raises:
        InputError: if ``decay`` is out of range, or a fit uses ``trainer=fsdp``.

    Source: spec stage1 section 3.4 (decay 0.9999, an option that no recipe uses).
    """

    def __init__(self, decay: float = 0.9999, *, evaluate: bool = True) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"decay={decay} is outside [0, 1): leave callbacks.ema out for no average")
        self.evaluate = evaluate
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._parameters: dict[str, nn.Parameter] = {}
        self._averages: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._loaded: Mapping[str, Tensor] | None = None
        self._updated_step = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse the one engine that hides which part of the weights a rank holds; a new fit has no averages yet."""
        if isinstance(trainer.strategy, FSDPStrategy):
            raise InputError("callbacks.ema cannot average the weights of trainer=fsdp: take trainer=fsdp2 or ddp")
        if stage == "fit":
            self._averages, self._loaded = {}, None

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the averages; all ranks give their shards and the first keeps the whole."""
        if not self._averages:
            return
        self._follow(trainer)  # a callback that stands before this one may save at the end of a step
        whole = {}
        for name, average in self._averages.items():
            value = average.full_tensor() if isinstance(average, DTensor) else average
            if trainer.is_global_zero:
                whole[name] = value.detach().cpu()
        checkpoint[KEY] = whole

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the averages until the weights are in their place."""
        self._loaded = checkpoint.get(KEY)
        if self._loaded is None:
            rank_zero_info("the checkpoint holds no averages: they start from its weights")
        self._averages = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights, or where the checkpoint ended."""
        if not self._averages:  # whoever evaluated before has placed those of the checkpoint
            self._place(pl_module)
        self._updated_step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the weights where they have made a step."""
        self._follow(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averages in; what is checked before the first step is the weights."""
        if not trainer.sanity_checking:
            self._put_in(pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back, after the module has computed its scores."""
        self._put_back(pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averages in."""
        self._put_in(pl_module)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._put_back(pl_module)

    @contextmanager
    def in_place(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
        """Let the averages stand where the weights are, as in validation; without ``evaluate`` the weights stay.

        Args:
            trainer: that fits.
            pl_module: whose weights these are.
        """
        if self._averages:
            self._follow(trainer)  # a callback that stands before this one may ask at the end of a step
        self._put_in(pl_module)
        try:
            yield
        finally:
            self._put_back(pl_module)

    def _place(self, pl_module: LightningModule) -> None:
        """Averages beside the weights, laid out as they are."""
        loaded, self._loaded = self._loaded, None
        _reshard(pl_module)
        self._parameters = dict(_trainable(pl_module))
        if loaded is not None and loaded.keys() != self._parameters.keys():
            name = min(loaded.keys() ^ self._parameters.keys())
            raise InputError(f"the averages of the checkpoint are not of this network: {name} is on one side only")
        for name, parameter in self._parameters.items():
            # In half precision the small parts that an average takes in would be lost.
            average = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            if loaded is not None:
                average.copy_(_laid_out_like(parameter, loaded[name]))
            self._averages[name] = average

    @torch.no_grad()
    def _follow(self, trainer: Trainer) -> None:
        if trainer.global_step == self._updated_step:
            return
        self._updated_step = trainer.global_step
        averages = [local_part(average) for average in self._averages.values()]
        weights = [local_part(self._parameters[name]).to(average) for name, average in self._averages.items()]
        self._update(averages, weights, 0)

    def _put_in(self, pl_module: LightningModule) -> None:
        if not self.evaluate:
            return
        if self._loaded is not None:
            self._place(pl_module)
        self._weights = {name: local_part(self._parameters[name]).clone() for name in self._averages}
        self._fill(pl_module, self._averages)

    def _put_back(self, pl_module: LightningModule) -> None:
        self._fill(pl_module, self._weights)
        self._weights = {}

    @torch.no_grad()
    def _fill(self, pl_module: LightningModule, values: Mapping[str, Tensor]) -> None:
        _reshard(pl_module)  # what a sharded module gathered for its last pass would outlive the change
        for name, value in values.items():
            local_part(self._parameters[name]).copy_(local_part(value))


def validates_averages(trainer: Trainer) -> bool:
    """Whether validation sees averages in the place of the weights."""
    return any(each.evaluate for each in _averages(trainer))


@contextmanager
def averages_in_place(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Let the weights be those that validation would see."""
    with ExitStack() as stack:
        for each in _averages(trainer):
            stack.enter_context(each.in_place(trainer, pl_module))
        yield


def _averages(trainer: Trainer) -> list[ExponentialMovingAverage]:
    return [each for each in trainer.callbacks if isinstance(each, ExponentialMovingAverage)]  # type: ignore[attr-defined]


def _trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _reshard(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()

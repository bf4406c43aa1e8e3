"""The weights that a run was for, where its checkpoints do not hold them by themselves."""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from typing_extensions import override

from ivt2.callbacks.checkpoint_io import WEIGHTS_KEY, DirectoryCheckpointIO
from ivt2.callbacks.ema import averages_in_place, validates_averages
from ivt2.callbacks.provenance import Provenance


class FinalWeights(Callback):
    """Writes the weights that validation judges, whole, at the end of a fit.

    Only where that says something new: where the engine shards parameters, whose checkpoints no other engine reads, or
    where weights are averaged. The folder is a checkpoint without an optimizer. It is loaded (``ivt2.load``), evaluated
    (``ckpt_path``) and starts other runs (``module.initial``); no run goes on from it. The first rank takes memory for
    all weights.

    Args:
        folder: where they go; those of an earlier fit are replaced.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather and write.

        Raises:
            InputError: There is not enough room on the disk.
        """
        model = trainer.strategy.model
        assert model is not None
        if not (_is_sharded(model) or validates_averages(trainer)):
            return
        with averages_in_place(trainer, pl_module):
            weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            if trainer.is_global_zero:  # while they are in place, for what was whole before is no copy
                self._write(trainer, pl_module, weights)
        trainer.strategy.barrier()
        rank_zero_info(f"whole weights: {self.folder}")

    def _write(self, trainer: Trainer, pl_module: LightningModule, weights: dict[str, Any]) -> None:
        state = {
            "state_dict": weights,
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "pytorch-lightning_version": lightning.__version__,
            WEIGHTS_KEY: True,
        }
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Provenance):
                callback.on_save_checkpoint(trainer, pl_module, state)
        DirectoryCheckpointIO().save_checkpoint(state, self.folder)


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(part, FSDPModule | FullyShardedDataParallel) for part in model.modules())

"""What modules that align clips with captions have in common: a network, partly frozen, and how it learns."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from typing_extensions import Self

from ivt2.batch import MediaTextBatch
from ivt2.checkpoint.initial import load_initial
from ivt2.models.clip import ClipModel
from ivt2.models.stage2 import Stage2Model
from ivt2.modules.optimization import MakeOptimizer, MakeSchedule, optimizer_with_schedule
from ivt2.modules.retrieval import RetrievalModule
from ivt2.ops.sharding import shard
from ivt2.optim.freezing import Frozen
from ivt2.optim.parameter_groups import parameter_groups


class AlignedModule(RetrievalModule, ABC):
    """A network with a learned temperature, of which parts may be frozen or start from files.

    Args:
        model: the network.
        optimizer: makes the optimizer from parameter groups.
        schedule: makes the schedule from the optimizer and ``total_steps``.
        rerank_top_k: candidates of each query that the matching heads score again; 0 leaves re-ranking out.
        initial: start weights of parts of ``model``, by its name, see ``load_initial``. ``train.py`` leaves them out
            where a run resumes.
        frozen: names of parts of ``model`` that do not learn and are held in evaluation mode: ``vision_encoder``.
        trained: names of parts below those that learn all the same: ``vision_encoder.clip_projector``.

    Raises:
        InputError: unknown part.
    """

    model: Stage2Model | ClipModel

    def __init__(
        self,
        model: Stage2Model | ClipModel,
        *,
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        rerank_top_k: int,
        initial: Mapping[str, Mapping[str, Any]] | None,
        frozen: Sequence[str],
        trained: Sequence[str],
    ) -> None:
        super().__init__(rerank_top_k=rerank_top_k)
        self.model = model
        self._frozen = Frozen(model, frozen, trained)
        self.optimizer = optimizer
        self.schedule = schedule
        self.initial = dict(initial or {})

    def setup(self, stage: str) -> None:
        """Fill in the start weights."""
        if stage == "fit":
            load_initial(self.model, self.initial)

    def configure_model(self) -> None:
        """Shard the blocks where the engine asks for it (``trainer=fsdp2``)."""
        if self.device_mesh is not None:
            shard(
                self.model,
                self.device_mesh["data_parallel"],
                units=self.model.sharding_units(),
                methods=self.model.ENTRY_POINTS,
            )

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Set the mode of all but the frozen parts, which stay in evaluation mode."""
        super().train(mode)
        self._frozen.eval_mode()
        return self

    def on_train_start(self) -> None:
        """Hold the frozen parts still: Lightning starts with the modes it finds, and returns to them after validation.

        Not before, since it warns of parts that it finds in evaluation mode.
        """
        self._frozen.eval_mode()

    def on_train_batch_start(self, batch: MediaTextBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Keep the temperature in range."""
        self.model.clamp_temperature()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Decay matrices only; step the schedule with the optimizer."""
        groups = parameter_groups(self.model.named_parameters(), no_weight_decay=self.model.no_weight_decay())
        return optimizer_with_schedule(groups, optimizer=self.optimizer, schedule=self.schedule, trainer=self.trainer)

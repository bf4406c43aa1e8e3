"""CLIP post-training: clips against captions by contrast alone, mostly between frozen towers.

loss = L_contrastive(vision_align(pool(video)), text(caption); temperature)     (arXiv:2403.15377, section 3.2)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from torch import Tensor

from ivt2.batch import MediaTextBatch, RetrievalBatch, TextDataModule
from ivt2.errors import InputError
from ivt2.losses.contrast import Contrast
from ivt2.metrics.retrieval_evaluation import RetrievalFeatures
from ivt2.models.clip import ClipModel
from ivt2.modules.aligned import AlignedModule
from ivt2.modules.optimization import MakeOptimizer, MakeSchedule
from ivt2.modules.patch_masking import PatchMasking
from ivt2.ops.chunks import by_chunks, check_chunk, num_chunks


class ClipModule(AlignedModule):
    """Trains a :class:`ClipModel` on :class:`MediaTextBatch`, evaluates zero-shot retrieval on `RetrievalBatch`.

    Logs ``train/loss`` and ``train/temperature``.

    Args:
        model: the network.
        optimizer: makes the optimizer from parameter groups.
        schedule: makes the schedule from the optimizer and ``total_steps``.
        contrast: the loss; None is the softmax over the clips and the captions of all ranks.
        masking: ``random`` hides patches anywhere in the clip, ``tube`` the same ones in every frame.
        mask_ratio: share of hidden patches in [0, 1) for ``video`` and ``image`` (clips of one frame); the reference
            hides none.
        encode_chunk: clips, and captions, that a tower takes at a time, at least 1; None takes all at once. Activations
            of one chunk are held, those of the others computed anew in the backward pass; the loss is that of the whole
            batch. Of use where blocks of a tower learn.
        frozen: names of parts of ``model`` that do not learn and are held in evaluation mode: ``text_encoder``.
        trained: names of parts below those that learn all the same: ``vision_encoder.clip_projector``.
        initial: start weights of parts of ``model``, by its name, see ``load_initial``; ``train.py`` leaves
            them out where a run resumes.

    Raises:
        InputError: unknown part, mask ratio or chunk out of range, or a bias that the loss has no use for.
    """

    model: ClipModel

    def __init__(
        self,
        model: ClipModel,
        *,
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        contrast: Contrast | None = None,
        masking: Literal["random", "tube"] = "random",
        mask_ratio: Mapping[str, float] | None = None,
        encode_chunk: int | None = None,
        frozen: Sequence[str] = (),
        trained: Sequence[str] = (),
        initial: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            model,
            optimizer=optimizer,
            schedule=schedule,
            rerank_top_k=0,
            initial=initial,
            frozen=frozen,
            trained=trained,
        )
        self.contrast = Contrast() if contrast is None else contrast
        self.contrast.check_bias(learned=model.logit_bias is not None)
        check_chunk(encode_chunk)
        self._masking = PatchMasking(masking, mask_ratio or {})
        self.encode_chunk = encode_chunk
        self.last_masked: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Check that the towers can take what the data holds; fill in the start weights."""
        data = cast("TextDataModule", self.trainer.datamodule)  # type: ignore[attr-defined]
        for source, medium in data.media.items():
            if medium == "audio":
                raise InputError(
                    f"datamodule.{source}: holds sounds without pictures, which CLIP cannot take: leave it out"
                )
        self.model.text_encoder.check_vocabulary(data.vocabulary)
        super().setup(stage)

    def training_step(self, batch: MediaTextBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Contrast of the clips and captions of all ranks."""
        visual, textual = self.encode(batch)
        temperature = self.model.read_temperature()
        loss = self.contrast(visual, textual, temperature, batch["sample_id"], self.model.read_logit_bias())
        size = len(batch["video"])
        self.log("train/loss", loss.detach(), batch_size=size, sync_dist=True, prog_bar=True)
        self.log("train/temperature", temperature.detach(), batch_size=size)
        return loss

    def encode(self, batch: MediaTextBatch) -> tuple[Tensor, Tensor]:
        """Unit-length features of the clips, of which patches may be hidden, and of their captions."""
        self.last_masked = self._masking.draw(self.model.vision_encoder, batch["video"], batch["seed"])
        chunks = num_chunks(len(batch["video"]), self.encode_chunk, device=batch["video"].device)
        (visual,) = by_chunks(_alone(self.model.encode_video), (batch["video"], self.last_masked), chunks)
        (textual,) = by_chunks(_alone(self.model.encode_text), (batch["input_ids"],), chunks)
        return visual, textual

    def encode_retrieval(self, batch: RetrievalBatch) -> RetrievalFeatures:
        """Encode clips, whole, and all their captions."""
        visual, textual = self.model.encode_video(batch["video"]), self.model.encode_text(batch["input_ids"])
        return RetrievalFeatures({"v": visual}, {}, textual, textual.new_empty(0, 0, 0), batch["valid"])


def _alone(encode: Callable[..., Tensor]) -> Callable[..., tuple[Tensor]]:
    return lambda *inputs: (encode(*inputs),)

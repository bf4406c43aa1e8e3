"""Stage 2: align clips with captions by contrast (VTC), matching (VTM) and masked language modelling (MLM).

    loss = w_vtc * L_contrastive + w_vtm * L_matching + w_mlm * L_masked_lm        (arXiv:2403.15377, section 3.2)

Every random choice about a sample is a hash of its seed, so it does not depend on ranks, workers or what ran before.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Literal, NamedTuple, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import Self

from ivt2.batch import MediaTextBatch, RetrievalBatch, TextDataModule, Vocabulary
from ivt2.errors import InputError
from ivt2.losses.contrastive import contrastive_loss
from ivt2.losses.masked_lm import IGNORED, MaskDraws, mask_tokens, masked_lm_loss
from ivt2.losses.matching import hard_negatives, matching_loss, matching_pairs
from ivt2.metrics.retrieval_evaluation import Match, RetrievalFeatures
from ivt2.models.stage2 import EncodedText, Stage2Model
from ivt2.modules.retrieval import RetrievalModule
from ivt2.modules.stage2_retrieval import encode_retrieval, matching_heads
from ivt2.ops.distributed import all_gather, global_mean
from ivt2.ops.masking import check_mask_ratio, random_masking, tube_masking
from ivt2.ops.random import uniform
from ivt2.ops.sharding import shard
from ivt2.optim.freezing import Frozen
from ivt2.optim.parameter_groups import parameter_groups


class Stream(IntEnum):
    """Purposes that a sample's seed serves; a number is never given to another purpose."""

    MASK = 1
    NEGATIVES = 2
    MASKED_LM = 3


class EncodedBatch(NamedTuple):
    """A batch after both encoders."""

    batch: MediaTextBatch
    vision_tokens: Tensor
    """[B, 1+Nv, D_v]"""
    visual: Tensor
    """[B, E], unit length"""
    text: EncodedText
    textual: Tensor
    """[B, E], unit length"""
    temperature: Tensor
    """[1]"""


class Stage2Module(RetrievalModule):
    """Trains a :class:`Stage2Model` on :class:`MediaTextBatch`, evaluates zero-shot retrieval on `RetrievalBatch`.

    Args:
        model: the network.
        optimizer: makes the optimizer from parameter groups.
        schedule: makes the schedule from the optimizer and ``total_steps``.
        terms: weight of each loss, of ``vtc``, ``vtm``, ``mlm``; one that is 0 or not named is not computed.
        masking: ``random`` hides tokens anywhere in the clip, ``tube`` the same ones in every frame.
        mask_ratio: share of hidden visual tokens in [0, 1) for ``video`` and ``image`` (clips of one frame).
        masked_lm_probability: share of words to predict. The reference uses 0.5, BERT used 0.15.
        negatives_group: hard negatives are mined within consecutive groups of so many samples; None is the batch of
            this rank, as in the reference. A size that divides every rank's batch makes training independent of ranks.
        reference_gradient_scale: scale the contrastive gradient by one over the number of ranks, as the reference does.
        rerank_top_k: candidates of each query that the matching head scores again; 0 leaves re-ranking out.
        frozen: names of parts of ``model`` that do not learn and are held in evaluation mode: ``vision_encoder``.
        trained: names of parts below those that learn all the same: ``vision_encoder.clip_projector``.

    Raises:
        InputError: unknown term or part, or mask ratio out of range.
    """

    def __init__(
        self,
        model: Stage2Model,
        *,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        schedule: Callable[..., LRScheduler],
        terms: Mapping[str, float],
        masking: Literal["random", "tube"] = "random",
        mask_ratio: Mapping[str, float],
        masked_lm_probability: float = 0.5,
        negatives_group: int | None = None,
        reference_gradient_scale: bool = False,
        rerank_top_k: int = 128,
        frozen: Sequence[str] = (),
        trained: Sequence[str] = (),
    ) -> None:
        super().__init__(rerank_top_k=rerank_top_k)
        self._losses = {"vtc": self._contrastive, "vtm": self._matching, "mlm": self._masked_lm}
        if not any(terms.values()) or set(terms) - set(self._losses):
            raise InputError(f"terms={dict(terms)}: name at least one of {', '.join(self._losses)}, with a weight")
        for ratio in mask_ratio.values():
            check_mask_ratio(ratio)
        self.model = model
        self._frozen = Frozen(model, frozen, trained)
        self.optimizer = optimizer
        self.schedule = schedule
        self.terms = {term: weight for term, weight in terms.items() if weight}
        self.masking = masking
        self.mask_ratio = dict(mask_ratio)
        self.masked_lm_probability = masked_lm_probability
        self.negatives_group = negatives_group
        self.reference_gradient_scale = reference_gradient_scale
        self.vocabulary: Vocabulary | None = None
        self.last_masked: Tensor | None = None

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Take over the vocabulary of the data, after checking that the encoders can take what the data holds."""
        data = cast("TextDataModule", self.trainer.datamodule)  # type: ignore[attr-defined]
        for source, medium in data.media.items():
            if medium == "audio":
                raise InputError(
                    f"datamodule.{source}: holds sounds without pictures, for which this model has no encoder; leave "
                    "it out, or set its medium where its samples have pictures too"
                )
        vocabulary = data.vocabulary
        if vocabulary.size > self.model.text_encoder.vocab_size:
            raise InputError(
                f"the tokenizer has {vocabulary.size} entries but text_encoder.vocab_size is "
                f"{self.model.text_encoder.vocab_size}: raise it, or train a smaller vocabulary"
            )
        self.vocabulary = vocabulary

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

    def training_step(self, batch: MediaTextBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Weighted sum of the named terms."""
        encoded = self.encode(batch)
        losses = {term: self._losses[term](encoded) for term in self.terms}
        loss = torch.stack([weight * losses[term] for term, weight in self.terms.items()]).sum()
        size = len(batch["video"])
        for term, value in losses.items():
            self.log(f"train/loss_{term}", value.detach(), batch_size=size, sync_dist=True)
        self.log("train/loss", loss.detach(), batch_size=size, sync_dist=True, prog_bar=True)
        return loss

    def encode(self, batch: MediaTextBatch) -> EncodedBatch:
        """Encode clips, of which most tokens are hidden, and captions."""
        self.last_masked = self._draw_mask(batch)
        encoded = self.model.encode_video(batch["video"], self.last_masked)
        text = self.model.encode_text(batch["input_ids"], batch["valid"])
        visual, textual = self.model.embed_video(encoded), self.model.embed_text(text)
        return EncodedBatch(batch, encoded.tokens, visual, text, textual, self.model.read_temperature())

    def _draw_mask(self, batch: MediaTextBatch) -> Tensor | None:
        encoder = self.model.vision_encoder
        num_frames = batch["video"].shape[1]
        ratio = self.mask_ratio.get("video" if num_frames > 1 else "image", 0.0)
        if ratio == 0:
            return None
        grid_frames = num_frames // encoder.tubelet_size
        num_draws = encoder.num_patches_per_frame * (grid_frames if self.masking == "random" else 1)
        noise = uniform(batch["seed"], num_draws, Stream.MASK)
        return random_masking(noise, ratio) if self.masking == "random" else tube_masking(noise, ratio, grid_frames)

    def _contrastive(self, encoded: EncodedBatch) -> Tensor:
        """Clips against the captions of all ranks."""
        visual, textual = (
            all_gather(feature, reference_gradient_scale=self.reference_gradient_scale)
            for feature in (encoded.visual, encoded.textual)
        )
        return contrastive_loss(visual, textual, encoded.temperature, all_gather(encoded.batch["sample_id"]))

    def _matching(self, encoded: EncodedBatch) -> Tensor:
        """Each pair, and each half of it with the wrong other half, through the fusion layers."""
        negatives = hard_negatives(
            encoded.visual,
            encoded.textual,
            encoded.temperature,
            encoded.batch["sample_id"],
            uniform(encoded.batch["seed"], 2, Stream.NEGATIVES),
            group_size=self.negatives_group,
        )
        pairs = matching_pairs(negatives)
        text = EncodedText(encoded.text.tokens[pairs.text], encoded.text.valid[pairs.text])
        logits = self.model.match(text, encoded.vision_tokens[pairs.vision])
        return global_mean(*matching_loss(logits, pairs.label))

    def _masked_lm(self, encoded: EncodedBatch) -> Tensor:
        """Predict hidden words of the captions from the other words and from the clip."""
        assert self.vocabulary is not None, "setup() takes the vocabulary over"
        input_ids, valid = encoded.batch["input_ids"], encoded.batch["valid"]
        corrupted, labels = mask_tokens(
            input_ids,
            MaskDraws.from_uniform(uniform(encoded.batch["seed"], 4 * input_ids.shape[1], Stream.MASKED_LM)),
            vocab_size=self.vocabulary.size,
            mask_id=self.vocabulary.mask_id,
            pad_id=self.vocabulary.pad_id,
            cls_id=self.vocabulary.cls_id,
            probability=self.masked_lm_probability,
        )
        selected = labels != IGNORED
        logits = self.model.predict_tokens(corrupted, valid, encoded.vision_tokens, selected)
        return global_mean(*masked_lm_loss(logits, labels[selected]))

    def encode_retrieval(self, batch: RetrievalBatch) -> RetrievalFeatures:
        """Encode clips, whole, and all their captions."""
        return encode_retrieval(self.model, batch)

    def matching_heads(self) -> Mapping[str, Match]:
        """Matching heads of the network, by the view that they judge."""
        return matching_heads(self.model)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Decay matrices only; step the schedule with the optimizer."""
        groups = parameter_groups(self.model.named_parameters(), no_weight_decay=self.model.no_weight_decay())
        optimizer = self.optimizer(groups)
        scheduler = self.schedule(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

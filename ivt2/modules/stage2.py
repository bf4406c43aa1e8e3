"""Stage 2: align clips and sounds with captions by contrast, matching and masked language modelling.

    loss = sum over terms of weight * term, of those that a batch's medium serves    (arXiv:2403.15377, section 3.2)

Every random choice about a sample is a hash of its seed, so it does not depend on ranks, workers or what ran before.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from ivt2.batch import MediaTextBatch, RetrievalBatch, TextDataModule, Vocabulary
from ivt2.errors import InputError
from ivt2.losses.contrast import Contrast
from ivt2.metrics.retrieval_evaluation import Match, RetrievalFeatures
from ivt2.models.stage2 import Stage2Model
from ivt2.models.teacher import Teacher
from ivt2.modules.aligned import AlignedModule
from ivt2.modules.optimization import MakeOptimizer, MakeSchedule
from ivt2.modules.patch_masking import PatchMasking
from ivt2.modules.stage2_alignment import TeacherAlignment
from ivt2.modules.stage2_encoding import EncodedBatch, StepEncoder, corrupt
from ivt2.modules.stage2_fusion import fused_losses
from ivt2.modules.stage2_retrieval import encode_retrieval, matching_heads
from ivt2.modules.stage2_terms import StepTerms, check_parts, check_sources, parse_terms
from ivt2.ops.masking import Masking
from ivt2.ops.random import Stream, uniform


class Stage2Module(AlignedModule):
    """Trains a :class:`Stage2Model` on :class:`MediaTextBatch`, evaluates zero-shot retrieval on `RetrievalBatch`.

    Logs ``train/loss`` and ``train/loss_<term>`` of the terms that a step has.

    Args:
        model: the network.
        optimizer: makes the optimizer from parameter groups.
        schedule: makes the schedule from the optimizer and ``total_steps``.
        terms: weight of each loss, or its ``weight`` and the kind of ``caption`` that it reads, see
            ``ivt2.modules.stage2_terms``; one that is 0 or not named is not computed. A step computes those that the
            medium of its batch serves. A source that delivers no kinds of captions gives its main one for any.
        masking: ``random`` hides tokens anywhere in the clip, ``tube`` the same ones in every frame, ``attention``
            those that the teacher hardly attends to (with the term ``uta``).
        mask_ratio: share of hidden visual tokens in [0, 1) for ``video`` and ``image`` (clips of one frame).
        masked_lm_probability: share of words to predict. The reference uses 0.5, BERT used 0.15.
        negatives_group: hard negatives are mined within consecutive groups of so many samples; None is the batch of
            this rank, as in the reference. A size that divides every rank's batch makes training independent of ranks.
        contrast: the loss of ``vtc`` and its kin; None is the softmax over all ranks.
        encode_chunk: clips, and captions, that an encoder takes at a time, at least 1; None takes all at once. Their
            activations are recomputed in the backward pass, so that a step costs the memory of a chunk, and its loss
            and gradients are those of the whole batch. What is dropped at random is drawn for each chunk.
        teacher: says what the term ``uta`` compares with; without that term it is not asked.
        rerank_top_k: candidates of each query that the matching head scores again; 0 leaves re-ranking out.
        initial: start weights of parts of ``model``, by its name, see ``load_initial``; ``train.py``
            leaves it out where a run resumes.
        frozen: names of parts of ``model`` that do not learn and are held in evaluation mode: ``vision_encoder``.
        trained: names of parts below those that learn all the same: ``vision_encoder.clip_projector``.

    Raises:
        InputError: unknown term or part, a term without what it needs, or a number out of range.
    """

    model: Stage2Model

    def __init__(
        self,
        model: Stage2Model,
        *,
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        terms: Mapping[str, float | Mapping[str, Any]],
        masking: Masking = "random",
        mask_ratio: Mapping[str, float],
        masked_lm_probability: float = 0.5,
        negatives_group: int | None = None,
        contrast: Contrast | None = None,
        encode_chunk: int | None = None,
        teacher: Teacher | None = None,
        rerank_top_k: int = 128,
        initial: Mapping[str, Mapping[str, Any]] | None = None,
        frozen: Sequence[str] = (),
        trained: Sequence[str] = (),
    ) -> None:
        super().__init__(
            model,
            optimizer=optimizer,
            schedule=schedule,
            rerank_top_k=rerank_top_k,
            initial=initial,
            frozen=frozen,
            trained=trained,
        )
        self.terms = parse_terms(terms)
        check_parts(self.terms, model, teacher=teacher is not None)
        self.contrast = Contrast() if contrast is None else contrast
        if any(each.term.kind == "contrast" for each in self.terms):
            self.contrast.check_bias(learned=model.logit_bias is not None)
        self._masking = PatchMasking(masking, mask_ratio)
        self._alignment: TeacherAlignment | None = None
        attends = masking == "attention"
        if teacher is not None and any(each.term.kind == "alignment" for each in self.terms):
            self._alignment = TeacherAlignment(teacher, model, attends=attends)
        elif attends:
            raise InputError("masking=attention needs a teacher and the term uta, or use masking=random or tube")
        taps = () if self._alignment is None else self._alignment.taps
        self._encoder = StepEncoder(model, taps=taps, chunk=encode_chunk)
        self.masked_lm_probability = masked_lm_probability
        self.negatives_group = negatives_group
        self.vocabulary: Vocabulary | None = None
        self.last_masked: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Take over the vocabulary, check that data and network fit, and fill in the start weights of a new run."""
        data = cast("TextDataModule", self.trainer.datamodule)  # type: ignore[attr-defined]
        for source, medium in data.media.items():
            if medium == "audio" and not hasattr(self.model, "audio_encoder"):
                raise InputError(
                    f"datamodule.{source}: holds sounds without pictures, for which this model has no encoder; leave "
                    "it out, use module=stage2_audio, or set its medium where its samples have pictures too"
                )
        if stage == "fit":
            training = {source: medium for source, medium in data.media.items() if source.startswith("train.")}
            check_sources(self.terms, training, data.caption_kinds)
        self.model.text_encoder.check_vocabulary(data.vocabulary)
        self.vocabulary = data.vocabulary
        if stage == "fit" and self._alignment is not None:
            self._alignment.check_weights()
        super().setup(stage)

    def on_train_start(self) -> None:
        """Hold the frozen parts still; check that chunks mean what a batch does."""
        super().on_train_start()
        self._encoder.check_chunks()

    def on_fit_start(self) -> None:
        """Bring the teacher to the device, which Lightning does not know of."""
        if self._alignment is not None:
            self._alignment.to(self.device)

    def training_step(self, batch: MediaTextBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Weighted sum of the terms that the batch serves."""
        terms = StepTerms.of(self.terms, batch)
        encoded = self.encode(batch)
        losses = self._contrasts(encoded, terms) | self._alignments(encoded, terms)
        losses |= fused_losses(self.model, encoded, terms, negatives_group=self.negatives_group)
        loss = torch.stack([each.weight * losses[each.name] for each in terms.terms]).sum()
        size = len(batch["seed"])
        for term, value in losses.items():
            self.log(f"train/loss_{term}", value.detach(), batch_size=size, sync_dist=True)
        self.log("train/loss", loss.detach(), batch_size=size, sync_dist=True, prog_bar=True)
        return loss

    def encode(self, batch: MediaTextBatch) -> EncodedBatch:
        """What the terms read: clips, of which most tokens are hidden, sounds, and captions."""
        terms = StepTerms.of(self.terms, batch)
        said = self._alignment.ask(batch["video"]) if self._alignment and terms.of_kind("alignment") else None
        attention = None if said is None else said.attention
        self.last_masked = self._draw_mask(batch, attention) if "video" in terms.modalities else None
        hidden = {}
        if terms.corrupted:
            assert self.vocabulary is not None, "setup() takes the vocabulary over"
            noise = uniform(batch["seed"], 4 * batch["input_ids"].shape[1], Stream.MASKED_LM)
            hidden = corrupt(batch, terms.corrupted, self.vocabulary, noise, probability=self.masked_lm_probability)
        return self._encoder(batch, terms, self.last_masked, hidden)._replace(said=said)

    def _draw_mask(self, batch: MediaTextBatch, attention: Tensor | None = None) -> Bool[Tensor, "B N"] | None:
        return self._masking.draw(self.model.vision_encoder, batch["video"], batch["seed"], attention)

    def _contrasts(self, encoded: EncodedBatch, terms: StepTerms) -> dict[str, Tensor]:
        """Each pair of sides against the pairs of all ranks."""
        losses = {}
        for name, term, _, caption in terms.of_kind("contrast"):
            other = encoded.features["video"] if term.partner == "video" else encoded.textual[caption]
            losses[name] = self.contrast(
                encoded.features[term.view], other, encoded.temperature, encoded.batch["sample_id"], encoded.bias
            )
        return losses

    def _alignments(self, encoded: EncodedBatch, terms: StepTerms) -> dict[str, Tensor]:
        """Visible tokens against what the teacher says of the whole clip."""
        if self._alignment is None or encoded.video is None or encoded.said is None:
            return {}
        image = encoded.batch["video"].shape[1] == 1
        loss = self._alignment(self.model, encoded.video, encoded.said, self.last_masked, image=image)
        return {each.name: loss for each in terms.of_kind("alignment")}

    def encode_retrieval(self, batch: RetrievalBatch) -> RetrievalFeatures:
        """Encode clips, whole, and all their captions."""
        return encode_retrieval(self.model, batch)

    def matching_heads(self) -> Mapping[str, Match]:
        """Matching heads that the terms train, by the view that they judge."""
        return matching_heads(self.model, self.terms)

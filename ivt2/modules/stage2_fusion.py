"""Terms of captions that look at a clip: matching and masked language modelling.

Letters: B clips, P = 3 B pairs to be judged, L text tokens.
"""

from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from ivt2.losses.masked_lm import IGNORED, masked_lm_loss
from ivt2.losses.matching import Negatives, hard_negatives, matching_loss, matching_pairs
from ivt2.models.bert import Context, join_contexts
from ivt2.models.stage2 import EncodedText, Stage2Model, start_tokens
from ivt2.models.stage2_audio import Stage2AudioVisualModel
from ivt2.modules.stage2_encoding import EncodedBatch
from ivt2.modules.stage2_terms import MODALITIES, Modality, StepTerms, View, WeightedTerm
from ivt2.ops.distributed import global_mean
from ivt2.ops.random import Stream, uniform

_DRAWS: dict[View, slice] = {"video": slice(0, 2), "audio": slice(2, 4), "audio_video": slice(4, 6)}
"""Draws of the stream of negatives by which wrong pairs of a view are found."""


def fused_losses(
    model: Stage2Model, encoded: EncodedBatch, terms: StepTerms, *, negatives_group: int | None
) -> dict[str, Tensor]:
    """Matching and masked-LM losses, as means over the items of all ranks; every rank must call it.

    Keys and values of pictures and of sound are projected once, and all captions that look at the same go through the
    fusion layers together.

    Args:
        model: the network.
        encoded: what its encoders gave.
        terms: what is computed.
        negatives_group: wrong pairs are found within consecutive groups of so many samples; None is all of this rank.
    """
    shown = [modality for modality in get_args(Modality) if any(modality in MODALITIES[view] for view in terms.shown)]
    projected = {modality: model.project_tokens(encoded.tokens[modality]) for modality in shown}
    losses: dict[str, Tensor] = {}
    for view in terms.shown:
        context = join_contexts(projected["audio"], projected["video"]) if view == "audio_video" else projected[view]
        matching, masked_lm = (terms.only(kind, view) for kind in ("matching", "masked_lm"))
        pairs = None if matching is None else _Pairs.find(encoded, matching, negatives_group)
        losses |= _look(model, encoded, context, pairs, masked_lm)
    return losses


class _Pairs(NamedTuple):
    """What a matching term judges."""

    each: WeightedTerm
    negatives: Negatives
    right: EncodedText
    """The captions of the clips."""
    wrong: EncodedText
    """As likely captions of other clips."""

    @classmethod
    def find(cls, encoded: EncodedBatch, each: WeightedTerm, group_size: int | None) -> "_Pairs":
        """Draw wrong halves, the likelier the more similar."""
        view, right = each.term.view, encoded.captions[each.caption]
        negatives = hard_negatives(
            encoded.features[view],
            encoded.textual[each.caption],
            encoded.temperature,
            encoded.batch["sample_id"],
            uniform(encoded.batch["seed"], 6, Stream.NEGATIVES)[:, _DRAWS[view]],
            group_size=group_size,
        )
        wrong = EncodedText(right.tokens[negatives.text], right.valid[negatives.text])
        return cls(each, negatives, right, wrong)


def _look(
    model: Stage2Model, encoded: EncodedBatch, context: Context, pairs: _Pairs | None, masked_lm: WeightedTerm | None
) -> dict[str, Tensor]:
    """All captions that look at one view: first those that look at their own clips, then right ones at wrong clips."""
    texts, wanted, rows = [], [], None
    if pairs is not None:
        texts, rows = [pairs.right, pairs.wrong], pairs.negatives.vision
        wanted = [start_tokens(text.valid) for text in texts]
    if masked_lm is not None:
        texts.append(encoded.corrupted[masked_lm.caption])
        wanted.append(encoded.labels[masked_lm.caption] != IGNORED)
    if pairs is not None:
        texts.append(pairs.right)
        wanted.append(wanted[0])
    text = EncodedText(*(torch.cat(each) for each in zip(*texts, strict=True)))
    fused = model.fuse_at(text, context, rows, torch.cat(wanted))
    size = 0 if rows is None else len(rows)
    starts, words, last = torch.split(fused, [2 * size, len(fused) - 3 * size, size])
    losses = {}
    if pairs is not None:
        logits = _scorer(model, pairs.each.term.view)(torch.cat([starts, last]))
        # Both kinds of wrong pairs have the same labels, so their order does not matter.
        losses[pairs.each.name] = global_mean(*matching_loss(logits, matching_pairs(pairs.negatives).label))
    if masked_lm is not None:
        labels = encoded.labels[masked_lm.caption]
        losses[masked_lm.name] = global_mean(*masked_lm_loss(model.predict_words(words), labels[labels != IGNORED]))
    return losses


def _scorer(model: Stage2Model, view: View) -> Callable[[Tensor], Tensor]:
    """The head that judges pairs of captions and this view."""
    if view == "video":
        return model.score_pairs
    assert isinstance(model, Stage2AudioVisualModel), "the terms were checked against the model"
    return model.score_audio_pairs if view == "audio" else model.score_audio_visual_pairs

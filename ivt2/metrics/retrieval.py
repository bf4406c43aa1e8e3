"""Retrieval between clips and captions: ranks, recalls, re-ranking, and a metric that collects features.

Letters: V clips, M captions, Q queries, K candidates. Scores of text-to-video have captions as rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchmetrics import Metric

from ivt2.errors import InputError
from ivt2.ops.distributed import all_gather, rank_and_world
from ivt2.ops.similarity import chunked_similarity, dual_softmax

REFERENCE_FILL = -100.0
"""Score that the reference gives to every pair it did not re-rank, which leaves them in exact ties."""

ScorePairs = Callable[[Int64[Tensor, "P"], Int64[Tensor, "P"]], Float[Tensor, "P"]]
"""Scores of P pairs, given the row numbers of their clips and of their captions."""


def retrieval_targets(clip_of_caption: Int64[Tensor, "M"], num_clips: int) -> Bool[Tensor, "V M"]:
    """True where the caption describes the clip.

    Args:
        clip_of_caption: row number of the clip of each caption.
        num_clips: number of clips V.
    """
    return torch.arange(num_clips, device=clip_of_caption.device)[:, None] == clip_of_caption[None, :]


def ranks(scores: Float[Tensor, "Q K"], targets: Bool[Tensor, "Q K"], *, chunk: int = 1024) -> Int64[Tensor, "Q"]:
    """Rank of the best true candidate of each query; 1 is best.

    ``1 + number of false candidates that score at least as high as the best true one``. So a tie counts against the
    query, whatever the order of the candidates; and a score that is not a number never helps.

    Args:
        scores: higher is better.
        targets: True at the candidates that are correct, one or more in each row.
        chunk: queries handled at a time; bounds memory, without effect on the result.

    Raises:
        InputError: a query has no correct candidate.
    """
    hopeless = int((~targets.any(dim=1)).sum())
    if hopeless:
        raise InputError(f"retrieval: {hopeless} of {len(targets)} queries have no true answer; drop them from the set")
    found = [_ranks(*part) for part in zip(torch.split(scores, chunk), torch.split(targets, chunk), strict=True)]
    return torch.cat(found)


def _ranks(scores: Tensor, targets: Tensor) -> Tensor:
    best = scores.masked_fill(~targets, -torch.inf).amax(dim=1, keepdim=True)
    # "Not below" rather than "at least": a comparison with NaN is false.
    return 1 + (~(scores < best) & ~targets).sum(dim=1)


def retrieval_metrics(
    scores_v2t: Float[Tensor, "V M"],
    targets: Int64[Tensor, "M"] | Bool[Tensor, "V M"],
    *,
    scores_t2v: Float[Tensor, "M V"] | None = None,
    view: str = "v",
) -> dict[str, float]:
    """Recall at 1, 5, 10 and median rank, both ways.

    Args:
        scores_v2t: clips as queries. A clip is found when any of its captions is.
        targets: row number of the clip of each caption; or, where captions describe several clips, the whole relation.
        scores_t2v: captions as queries; the transpose of ``scores_v2t`` unless given.
        view: what of the clips was compared: ``v`` pictures, ``a`` sound, ``av`` both; stands in the names.

    Returns:
        ``v2t_r1``, ``v2t_r5``, ``v2t_r10`` and their mean ``v2t_r_mean`` in percent, ``v2t_median_rank`` (1 is best),
        the same for ``t2v``, and ``r_mean``, the mean of the two means. Of another view ``av2t_r1`` and so on, and
        ``r_mean_av``.

    Source: reference ``itm_eval``, which rounds to two decimals.
    """
    relation = targets if targets.dtype == torch.bool else retrieval_targets(targets, len(scores_v2t))
    directions = {
        f"{view}2t": (scores_v2t, relation),
        f"t2{view}": (scores_v2t.T if scores_t2v is None else scores_t2v, relation.T),
    }
    metrics: dict[str, float] = {}
    for name, (scores, correct) in directions.items():
        found = ranks(scores, correct)
        recalls = {f"{name}_r{k}": 100.0 * (found <= k).double().mean().item() for k in (1, 5, 10)}
        metrics |= recalls
        metrics[f"{name}_r_mean"] = sum(recalls.values()) / len(recalls)
        metrics[f"{name}_median_rank"] = _median(found)
    both = "r_mean" if view == "v" else f"r_mean_{view}"
    metrics[both] = sum(metrics[f"{name}_r_mean"] for name in directions) / 2
    return metrics


def _median(values: Tensor) -> float:
    """Mean of the two middle values where their number is even."""
    ordered = values.double().sort().values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]).item() / 2


def dual_softmax_metrics(similarity: Float[Tensor, "V M"], targets: Tensor, *, view: str = "v") -> dict[str, float]:
    """`retrieval_metrics` of the dual-softmax scores: the queries of each direction compete with each other.

    Every query's score then depends on all other queries, so numbers compare only with others of this protocol.
    """
    scores_t2v = dual_softmax(similarity.T, dim=0)
    return retrieval_metrics(dual_softmax(similarity, dim=0), targets, scores_t2v=scores_t2v, view=view)


def average_prompts(scores: Float[Tensor, "V M"], num_prompts: int) -> Float[Tensor, "V classes"]:
    """Mean score over the prompts of each class.

    Args:
        scores: the prompts of a class stand next to each other.
        num_prompts: prompts of each class.
    """
    return scores.reshape(len(scores), -1, num_prompts).mean(dim=2)


def candidates(similarity: Float[Tensor, "Q K"], top_k: int) -> Bool[Tensor, "Q K"]:
    """True at the ``top_k`` most similar candidates of each query; among equals the earlier one is taken."""
    order = similarity.argsort(dim=1, descending=True, stable=True)[:, :top_k]
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(1, order, value=True)


def rerank(
    similarity: Float[Tensor, "V M"],
    top_k: int,
    score_pairs: ScorePairs,
    *,
    chunk: int = 32,
    similarity_t2v: Float[Tensor, "M V"] | None = None,
    fill: float | None = None,
    owner: Int64[Tensor, "V"] | None = None,
) -> tuple[Float[Tensor, "V M"], Float[Tensor, "M V"]]:
    """Score again, both ways, the ``top_k`` most similar candidates of each clip and of each caption.

    A pair wanted by both directions is scored once. With several ranks each scores its share of the pairs, so every
    rank must call it with the same similarities and owners. All ranks call ``score_pairs`` equally often, some of them
    in the end with no pair.

    Args:
        similarity: cheap scores that choose the candidates of each clip.
        top_k: candidates of each query; the published numbers use 128.
        score_pairs: expensive score of pairs, higher is better.
        chunk: pairs in one call of ``score_pairs``.
        similarity_t2v: cheap scores that choose the candidates of each caption (dual-softmax scores differ between the
            directions); the transpose of ``similarity`` unless given.
        fill: score of every pair that is not a candidate, such as ``REFERENCE_FILL``; by default these keep the order
            of their similarities, below every candidate of their query.
        owner: rank that scores the pairs of each clip, where only that rank has its tokens; by default the pairs are
            shared out evenly and any rank may have to score any clip.

    Returns:
        Scores with clips as rows, and with captions as rows.

    Source: reference ``evaluation`` of stage-2 retrieval (``k_test``).
    """
    if top_k < 1:
        raise InputError(f"retrieval: top_k is {top_k}; re-ranking needs at least one candidate")
    similarity = similarity.cpu()
    similarity_t2v = similarity.T if similarity_t2v is None else similarity_t2v.cpu()
    wanted_v2t, wanted_t2v = candidates(similarity, top_k), candidates(similarity_t2v, top_k)
    clip, caption = (wanted_v2t | wanted_t2v.T).nonzero().unbind(dim=1)
    scores = torch.zeros_like(similarity)
    scores[clip, caption] = _score_shared(clip, caption, score_pairs, chunk=chunk, owner=owner).to(scores)
    return _complete(scores, wanted_v2t, similarity, fill), _complete(scores.T, wanted_t2v, similarity_t2v, fill)


def _score_shared(
    clip: Tensor, caption: Tensor, score_pairs: ScorePairs, *, chunk: int, owner: Tensor | None
) -> Tensor:
    """Score a share of the pairs on each rank; all of them return on all ranks."""
    rank, world = rank_and_world()
    num = len(clip)
    share = torch.arange(num) * world // max(num, 1) if owner is None else owner[clip]
    own = (share == rank).nonzero()[:, 0]
    # A sharded network needs all ranks in every call: those with fewer pairs end with calls without any.
    num_calls = -(-int(share.bincount(minlength=world).max()) // chunk)
    parts = [own[call * chunk : (call + 1) * chunk] for call in range(num_calls)]
    scored = [score_pairs(clip[part], caption[part]).detach().float().cpu() for part in parts]
    scores = torch.zeros(num)
    scores[share.argsort(stable=True)] = all_gather(torch.cat([torch.zeros(0), *scored]))
    return scores


def _complete(scores: Tensor, wanted: Tensor, similarity: Tensor, fill: float | None) -> Tensor:
    """Give the pairs that were not scored a score below all that were."""
    if fill is not None:
        return scores.masked_fill(~wanted, fill)
    lowest = scores.masked_fill(~wanted, torch.inf).amin(dim=1, keepdim=True)
    # Steps of one: the similarities' own differences would drown in the precision of the scores. Equals stay equal.
    values, order = similarity.sort(dim=1, descending=True)
    lower = torch.cat([torch.ones_like(values[:, :1]), (values[:, 1:] < values[:, :-1]).to(values)], dim=1)
    steps = torch.zeros_like(scores).scatter(1, order, lower.cumsum(dim=1))
    return torch.where(wanted, scores, lowest - steps)


class RetrievalResult:
    """What an evaluation found, complete enough to draw from.

    An ordinary class: torchmetrics copies the tensors inside tuples and dataclasses, and drops dimensions of size 1.

    Args:
        similarity: cosines of clips and captions, in order of ``index`` and of the captions within a clip.
        clip_of_caption: row number of the clip of each caption.
        index: position in the evaluation set of each row; has gaps where clips could not be used.
        metrics: by protocol: ``raw``, ``dual_softmax``, and ``reranked`` where `add_reranked` was called.
        view: what of the clips was compared: ``v`` pictures, ``a`` sound, ``av`` both.
    """

    def __init__(
        self,
        similarity: Float[Tensor, "V M"],
        clip_of_caption: Int64[Tensor, "M"],
        index: Int64[Tensor, "V"],
        metrics: dict[str, dict[str, float]],
        view: str = "v",
    ) -> None:
        self.similarity = similarity
        self.clip_of_caption = clip_of_caption
        self.index = index
        self.metrics = metrics
        self.view = view

    def add_reranked(self, scores_v2t: Float[Tensor, "V M"], scores_t2v: Float[Tensor, "M V"]) -> None:
        """Put the metrics of what `rerank` returned under ``reranked``."""
        self.metrics["reranked"] = retrieval_metrics(
            scores_v2t, self.clip_of_caption, scores_t2v=scores_t2v, view=self.view
        )

    def add_view(self, other: "RetrievalResult") -> None:
        """Put the metrics of another view of the same clips beside these; similarities stay those of this view."""
        for protocol, metrics in other.metrics.items():
            self.metrics.setdefault(protocol, {}).update(metrics)


class RetrievalMetric(Metric):  # type: ignore[misc]  # torchmetrics is not read by mypy
    """Collects features of clips and captions in main memory and ranks them at the end.

    Ranks and batches may bring the clips in any order and, where a sampler pads, more than once: rows are sorted by
    ``index`` and repeated ones dropped. All ranks get the same result.

    Args:
        chunk: clips compared with all captions at a time.
        view: what of the clips is compared: ``v`` pictures, ``a`` sound, ``av`` both.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    visual: list[Tensor]
    index: list[Tensor]
    text: list[Tensor]
    clip_of_caption: list[Tensor]
    caption_of_clip: list[Tensor]

    def __init__(self, *, chunk: int = 1024, view: str = "v") -> None:
        # torchmetrics cannot gather from a rank without data, nor CPU tensors over NCCL: `compute` gathers.
        super().__init__(sync_on_compute=False)
        self.chunk = chunk
        self.view = view
        for name in ("visual", "index", "text", "clip_of_caption", "caption_of_clip"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        visual: Float[Tensor, "B D"],
        index: Int64[Tensor, "B"],
        text: Float[Tensor, "M D"],
        clip_of_caption: Int64[Tensor, "M"],
    ) -> None:
        """Add the clips of one batch and all their captions.

        Args:
            visual: features of the clips.
            index: position of each clip in the evaluation set.
            text: features of the captions of these clips; those of a clip in their own order.
            clip_of_caption: ``index`` of the clip of each caption.
        """
        index, clip_of_caption = index.cpu(), clip_of_caption.cpu()
        self.visual.append(visual.detach().float().cpu())
        self.index.append(index)
        self.text.append(text.detach().float().cpu())
        self.clip_of_caption.append(clip_of_caption)
        self.caption_of_clip.append(_position_within_clip(index, clip_of_caption))

    def compute(self) -> RetrievalResult:
        """Rank everything collected on all ranks.

        Raises:
            InputError: no rank has collected a clip, or a caption's clip is missing.
        """
        visual, index = self._gather("visual"), self._gather("index")
        text, clip = self._gather("text"), self._gather("clip_of_caption")
        if len(index) == 0:
            raise InputError("retrieval: no clip was collected; see the ledger for why every sample was skipped")
        index, rows = _first_of_each(index[:, None])
        text_rows = self.caption_rows(clip, self._gather("caption_of_clip"))
        index, clip = index[:, 0], clip[text_rows]
        clip_of_caption = torch.searchsorted(index, clip).clamp(max=len(index) - 1)
        missing = clip[index[clip_of_caption] != clip]
        if len(missing):
            raise InputError(f"retrieval: a caption belongs to clip {int(missing[0])}, which was not given; give both")
        similarity = chunked_similarity(visual[rows], text[text_rows], self.chunk)
        metrics = {
            "raw": retrieval_metrics(similarity, clip_of_caption, view=self.view),
            "dual_softmax": dual_softmax_metrics(similarity, clip_of_caption, view=self.view),
        }
        return RetrievalResult(similarity, clip_of_caption, index, metrics, self.view)

    @staticmethod
    def caption_rows(clip_of_caption: Int64[Tensor, "N"], caption_of_clip: Int64[Tensor, "N"]) -> Int64[Tensor, "M"]:
        """Where each caption of the result stands among everything collected, in the order of the result.

        Args:
            clip_of_caption: ``index`` of the clip of each collected caption, of all ranks.
            caption_of_clip: position of each of them among its clip's captions, as this metric's state has it.
        """
        return _first_of_each(torch.stack([clip_of_caption, caption_of_clip], dim=1))[1]

    def _gather(self, name: str) -> Tensor:
        """Everything of one state from all ranks; a rank without data takes the width from the others."""
        parts: list[Any] = getattr(self, name)
        if name in {"visual", "text"}:
            width = int(all_gather(torch.tensor([parts[0].shape[1] if parts else 0])).max())
            parts = [torch.zeros(0, width), *parts]
        else:
            parts = [torch.zeros(0, dtype=torch.int64), *parts]
        return all_gather(torch.cat(parts))


def _position_within_clip(index: Tensor, clip_of_caption: Tensor) -> Tensor:
    """Number each clip's captions from 0; a clip that the batch holds twice has each number twice."""
    same = clip_of_caption[:, None] == clip_of_caption[None, :]
    earlier = same.tril(diagonal=-1).sum(dim=1)
    copies = (clip_of_caption[:, None] == index[None, :]).sum(dim=1)
    return earlier % (same.sum(dim=1) // copies.clamp(min=1)).clamp(min=1)


def _first_of_each(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted distinct rows of integers, and where each first occurs."""
    distinct, group = torch.unique(keys, dim=0, return_inverse=True)
    rows = torch.arange(len(keys))
    return distinct, torch.full((len(distinct),), len(keys)).scatter_reduce(0, group, rows, reduce="amin")

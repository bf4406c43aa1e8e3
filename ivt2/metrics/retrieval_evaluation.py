"""Retrieval of one dataset, from encoded batches to re-ranked results; features and tokens wait in main memory.

A view is what of the clips captions are compared with, named by the letters of the encoders that it needs: ``v`` the
pictures, ``a`` the sound, ``av`` both.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ivt2.metrics.retrieval import RetrievalMetric, RetrievalResult, rerank
from ivt2.ops.distributed import all_gather, gather_objects, rank_and_world

Match = Callable[..., Tensor]
"""Logits [P, 2] of (no match, match) of text tokens [P, L, D], their validity [P, L], the row [P] of the clip of each
pair and, for each letter of the view, tokens [B, N, F] that its encoder gives of the clips."""


class RetrievalFeatures(NamedTuple):
    """A batch of an evaluation, encoded: B clips with their M captions."""

    clips: Mapping[str, Float[Tensor, "B E"]]
    """By view: features of the clips in the space shared with text."""
    tokens: Mapping[str, Float[Tensor, "B _ F"]]
    """By encoder (``v``, ``a``): what the fusion layers look at."""
    textual: Float[Tensor, "M E"]
    """Features of the captions in the shared space."""
    text_tokens: Float[Tensor, "M L D"]
    """What the fusion layers start from; a batch may have fewer tokens than another. Not read where no head matches."""
    valid: Bool[Tensor, "M L"]
    """True where a text token is real."""


class RetrievalEvaluation:
    """Collects what an evaluation encodes, then ranks by cosine and, among the best, by matching heads.

    Clips' tokens, which are large, stay on the rank that encoded them, once whatever number of views looks at them, and
    that rank scores the pairs of its clips; captions' tokens are gathered.

    Args:
        views: what the captions are compared with; the similarities of the result are those of the last one.
        matched: those that a matching head scores again. Tokens are kept for them alone.
    """

    def __init__(self, views: Sequence[str] = ("v",), *, matched: Sequence[str] = ("v",)) -> None:
        self.metrics = {view: RetrievalMetric(view=view) for view in views}
        self.matched = [view for view in views if view in matched]
        self._tokens: dict[str, list[Tensor]] = {letter: [] for view in self.matched for letter in view}
        self._text_tokens: list[Tensor] = []
        self._valid: list[Tensor] = []

    def update(
        self, *, index: Int64[Tensor, "B"], clip_of_caption: Int64[Tensor, "M"], features: RetrievalFeatures
    ) -> None:
        """Add the clips of one batch and all their captions.

        Args:
            index: position of each clip in the evaluation set.
            clip_of_caption: ``index`` of the clip of each caption.
            features: of the clips and their captions.
        """
        # Converted here, once: the metrics of all views then hold the same tensors.
        index, clip_of_caption, textual = index.cpu(), clip_of_caption.cpu(), features.textual.detach().float().cpu()
        for view, metric in self.metrics.items():
            metric.update(features.clips[view], index, textual, clip_of_caption)
        for letter, parts in self._tokens.items():
            parts.append(features.tokens[letter].detach().cpu())
        if self.matched:
            self._text_tokens.append(features.text_tokens.detach().cpu())
            self._valid.append(features.valid.cpu())

    def compute(
        self, match: Mapping[str, Match], *, top_k: int, device: torch.device, chunk: int = 64
    ) -> RetrievalResult:
        """Results of all ranks together; every rank must call it.

        Args:
            match: for each view that is matched, its head with the fusion layers.
            top_k: candidates of each query to be scored again; 0 leaves re-ranking out.
            device: where ``match`` works.
            chunk: pairs scored at a time.

        Returns:
            Metrics of all views, with the similarities of the last one.
        """
        results: dict[str, RetrievalResult] = {view: metric.compute() for view, metric in self.metrics.items()}
        if top_k and self.matched:
            self._rerank(results, match, top_k=top_k, device=device, chunk=chunk)
        *others, last = results.values()
        for result in others:
            last.add_view(result)
        return last

    def _rerank(
        self,
        results: Mapping[str, RetrievalResult],
        match: Mapping[str, Match],
        *,
        top_k: int,
        device: torch.device,
        chunk: int,
    ) -> None:
        """Let each view's head score its candidates; what the heads look at is brought together once."""
        any_result = next(iter(results.values()))
        index = torch.cat([torch.zeros(0, dtype=torch.int64), *self._any_metric.index])
        owner, own_row = self._owners(index, any_result.index)
        text_tokens, valid = self._captions(any_result)
        tokens = {letter: _joined(parts) for letter, parts in self._tokens.items()}

        def score(view: str, clip: Tensor, caption: Tensor) -> Tensor:
            # Pairs come clip by clip, so that few clips have to be moved and projected for many pairs.
            rows, row = torch.unique_consecutive(own_row[clip], return_inverse=True)
            looked_at = [tokens[letter][rows].to(device) for letter in view]
            texts = text_tokens[caption].to(device), valid[caption].to(device)
            logits = match[view](*texts, row.to(device), *looked_at)
            return logits[:, 1]

        for view in self.matched:
            ranked = rerank(results[view].similarity, top_k, partial(score, view), owner=owner, chunk=chunk)
            results[view].add_reranked(*ranked)

    @property
    def _any_metric(self) -> RetrievalMetric:
        """One of the metrics: all of them hold the same clips and captions."""
        return next(iter(self.metrics.values()))

    @staticmethod
    def _owners(index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """For each clip of the result, the first rank that has it, and its place on this rank (0 if elsewhere)."""
        rank, world = rank_and_world()
        has = torch.isin(rows, index)
        claims = all_gather(torch.where(has, rank, world)[None])
        # A clip that a sampler repeated on this rank: any of its copies will do.
        order = index.argsort(stable=True)
        own_row = torch.zeros_like(rows)
        own_row[has] = order[torch.searchsorted(index[order], rows[has])]
        return claims.amin(dim=0), own_row

    def _captions(self, result: RetrievalResult) -> tuple[Tensor, Tensor]:
        """Tokens and validity of all captions of all ranks, in the order of the result."""
        metric = self._any_metric
        clip, position = (all_gather(_joined(parts)) for parts in (metric.clip_of_caption, metric.caption_of_clip))
        length = max(gather_objects(max((part.shape[1] for part in self._valid), default=0)))
        text_tokens, valid = (
            all_gather(_joined([_filled(part, length) for part in parts])) for parts in (self._text_tokens, self._valid)
        )
        rows = metric.caption_rows(clip, position)
        assert len(rows) == len(result.clip_of_caption)
        return text_tokens[rows], valid[rows]


def _filled(part: Tensor, length: int) -> Tensor:
    """Captions with zeros behind them, up to the length of the longest."""
    filled = part.new_zeros(len(part), length, *part.shape[2:])
    filled[:, : part.shape[1]] = part
    return filled


def _joined(parts: list[Tensor]) -> Tensor:
    """Everything that this rank collected; a rank without data takes width and type from the others."""
    own = (tuple(parts[0].shape[1:]), parts[0].dtype) if parts else None
    shape, dtype = next(each for each in gather_objects(own) if each is not None)
    return torch.cat([torch.zeros(0, *shape, dtype=dtype), *parts])

"""Retrieval of one dataset, from encoded batches to re-ranked results; features and tokens wait in main memory."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ivt2.metrics.retrieval import RetrievalMetric, RetrievalResult, rerank
from ivt2.ops.distributed import all_gather, gather_objects, rank_and_world

Match = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits [P, 2] of (no match, match) of text tokens [P, L, D], their validity [P, L] and vision tokens [P, N, D_v]."""


class RetrievalEvaluation:
    """Collects what an evaluation encodes, then ranks by cosine and, among the best, by a matching head.

    Clips' tokens, which are large, stay on the rank that encoded them, and that rank scores the pairs of its clips;
    captions' tokens are gathered.
    """

    def __init__(self) -> None:
        self.metric = RetrievalMetric()
        self._vision_tokens: list[Tensor] = []
        self._text_tokens: list[Tensor] = []
        self._valid: list[Tensor] = []

    def update(
        self,
        *,
        index: Int64[Tensor, "B"],
        visual: Float[Tensor, "B E"],
        vision_tokens: Float[Tensor, "B N D_v"],
        clip_of_caption: Int64[Tensor, "M"],
        textual: Float[Tensor, "M E"],
        text_tokens: Float[Tensor, "M L D"],
        valid: Bool[Tensor, "M L"],
    ) -> None:
        """Add the clips of one batch and all their captions.

        Args:
            index: position of each clip in the evaluation set.
            visual: features of the clips in the space shared with text.
            vision_tokens: what the fusion layers look at.
            clip_of_caption: ``index`` of the clip of each caption.
            textual: features of the captions in the shared space.
            text_tokens: what the fusion layers start from.
            valid: True where a text token is real.
        """
        self.metric.update(visual, index, textual, clip_of_caption)
        self._vision_tokens.append(vision_tokens.detach().cpu())
        self._text_tokens.append(text_tokens.detach().cpu())
        self._valid.append(valid.cpu())

    def compute(self, match: Match, *, top_k: int, device: torch.device, chunk: int = 64) -> RetrievalResult:
        """Results of all ranks together; every rank must call it.

        Args:
            match: the matching head with the fusion layers.
            top_k: candidates of each query to be scored again; 0 leaves re-ranking out.
            device: where ``match`` works.
            chunk: pairs scored at a time.
        """
        result: RetrievalResult = self.metric.compute()
        if top_k == 0:
            return result
        index = torch.cat([torch.zeros(0, dtype=torch.int64), *self.metric.index])
        vision_tokens = _joined(self._vision_tokens)
        owner, own_row = self._owners(index, result.index)
        text_tokens, valid = self._captions(result)

        def score(clip: Tensor, caption: Tensor) -> Tensor:
            logits = match(
                text_tokens[caption].to(device), valid[caption].to(device), vision_tokens[own_row[clip]].to(device)
            )
            return logits[:, 1]

        result.add_reranked(*rerank(result.similarity, top_k, score, owner=owner, chunk=chunk))
        return result

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
        clip, position, text_tokens, valid = (
            all_gather(_joined(parts))
            for parts in (self.metric.clip_of_caption, self.metric.caption_of_clip, self._text_tokens, self._valid)
        )
        rows = self.metric.caption_rows(clip, position)
        assert len(rows) == len(result.clip_of_caption)
        return text_tokens[rows], valid[rows]


def _joined(parts: list[Tensor]) -> Tensor:
    """Everything that this rank collected; a rank without data takes width and type from the others."""
    own = (tuple(parts[0].shape[1:]), parts[0].dtype) if parts else None
    shape, dtype = next(each for each in gather_objects(own) if each is not None)
    return torch.cat([torch.zeros(0, *shape, dtype=dtype), *parts])

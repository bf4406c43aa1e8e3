"""What modules that retrieve have in common: collect an evaluation, rank it at its end, log what came out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from lightning.pytorch import LightningModule

from ivt2.batch import RetrievalBatch
from ivt2.metrics.retrieval import RetrievalResult
from ivt2.metrics.retrieval_evaluation import Match, RetrievalEvaluation, RetrievalFeatures


class RetrievalModule(LightningModule, ABC):
    """Validates and tests by zero-shot retrieval on :class:`RetrievalBatch`; a subclass says how to encode.

    Logs ``val/<set>/[<protocol>/]<metric>``, such as ``val/msrvtt/t2v_r1`` and ``val/msrvtt/reranked/t2av_r1``.

    Args:
        rerank_top_k: candidates of each query that the matching heads score again; 0 leaves re-ranking out.
    """

    def __init__(self, *, rerank_top_k: int) -> None:
        super().__init__()
        self.rerank_top_k = rerank_top_k
        self.retrieval_results: dict[str, RetrievalResult] = {}
        self._evaluations: dict[str, RetrievalEvaluation] = {}

    @abstractmethod
    def encode_retrieval(self, batch: RetrievalBatch) -> RetrievalFeatures:
        """Encode clips, whole, and all their captions; all batches of a set have the same views."""

    def matching_heads(self) -> Mapping[str, Match]:
        """Heads that re-rank, by the view of the clips that they judge; none unless a subclass has some."""
        return {}

    def evaluation_step(self, batch: RetrievalBatch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        """Encode a batch and keep what ranking needs."""
        features = self.encode_retrieval(batch)
        source = batch["source"]
        if source not in self._evaluations:
            matched = list(self.matching_heads()) if self.rerank_top_k else []
            self._evaluations[source] = RetrievalEvaluation(list(features.clips), matched=matched)
        self._evaluations[source].update(
            index=batch["index"], clip_of_caption=batch["clip_of_caption"], features=features
        )

    def on_evaluation_end(self) -> None:
        """Rank, re-rank, and log."""
        if self.trainer.sanity_checking:
            self._evaluations.clear()
        for source, evaluation in self._evaluations.items():
            result = evaluation.compute(self.matching_heads(), top_k=self.rerank_top_k, device=self.device)
            self.retrieval_results[source] = result
            for protocol, metrics in result.metrics.items():
                prefix = f"val/{source}/" if protocol == "raw" else f"val/{source}/{protocol}/"
                self.log_dict({f"{prefix}{name}": value for name, value in metrics.items()}, rank_zero_only=False)
        self._evaluations.clear()

    validation_step = test_step = evaluation_step
    on_validation_epoch_end = on_test_epoch_end = on_evaluation_end

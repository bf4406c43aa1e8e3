"""Classification of videos seen in several views (temporal segments times spatial crops)."""

from jaxtyping import Bool, Float, Int64
from torch import Tensor


def merge_views(logits: Float[Tensor, "B views classes"]) -> Float[Tensor, "B classes"]:
    """Mean over the views of each view's class probabilities.

    Source: reference ``merge`` of the stage-1 engine: probabilities are averaged, not logits.
    """
    return logits.float().softmax(dim=-1).mean(dim=1)


def in_top_k(scores: Float[Tensor, "B classes"], labels: Int64[Tensor, "B"], k: int) -> Bool[Tensor, "B"]:
    """True where fewer than ``k`` other classes score at least as high as the label; a tie counts as a miss.

    Args:
        scores: higher is likelier.
        labels: true classes.
        k: size of the list, >= 1.
    """
    own = scores.gather(1, labels[:, None])
    # "Not below", so that a score that is not a number counts as a miss; the label itself is one of them.
    return (~(scores < own)).sum(dim=1) <= k

"""What frozen features are worth: simple classifiers on top of them, and signs of collapse.

Letters: N features of a training set, M of a test set, R classes, D width.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ivt2.metrics.classification import in_top_k
from ivt2.ops.similarity import cosine_similarity

PENALTIES = tuple(10.0**power for power in range(-4, 4))
"""Strengths of regularisation that `linear_probe_accuracy` chooses from, for each training feature."""

_CHUNK = 1024
_CONSTANT = 1e-6
"""Spread of a coordinate, as a share of its mean, below which it is rounding noise of single precision."""


class LabelledFeatures(NamedTuple):
    """Frozen features of the clips of a set and their classes."""

    features: Float[Tensor, "N D"]
    labels: Int64[Tensor, "N"]
    """Class numbers from 0."""


def probe_metrics(
    train: LabelledFeatures, test: LabelledFeatures, *, k: int = 20, temperature: float = 0.07
) -> dict[str, float]:
    """What a probe of one labelled set tells.

    Args:
        train: what the classifiers learn from, one clip or more.
        test: what they are judged by; its features also give the signs of collapse.
        k: see `knn_accuracy`.
        temperature: see `knn_accuracy`.

    Returns:
        ``knn_top1`` and ``linear_top1`` in percent, ``effective_rank`` in [1, D], ``mean_cosine`` in [-1, 1]; nothing
        but NaN where any feature is not finite.
    """
    if not (train.features.isfinite().all() and test.features.isfinite().all()):
        return dict.fromkeys(("knn_top1", "linear_top1", "effective_rank", "mean_cosine"), math.nan)
    return {
        "knn_top1": knn_accuracy(*train, *test, k=k, temperature=temperature),
        "linear_top1": linear_probe_accuracy(*train, *test),
        "effective_rank": effective_rank(test.features),
        "mean_cosine": mean_cosine(test.features),
    }


def knn_accuracy(
    train_features: Float[Tensor, "N D"],
    train_labels: Int64[Tensor, "N"],
    test_features: Float[Tensor, "M D"],
    test_labels: Int64[Tensor, "M"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of test features whose nearest training features vote for their class.

    The ``k`` neighbours of highest cosine vote with weight ``exp(cosine / temperature)``. A class that gets as many
    votes as the true one is a miss.

    Args:
        train_features: of any scale.
        train_labels: class numbers from 0.
        test_features: of any scale.
        test_labels: class numbers from 0; a class without training features is always missed.
        k: number of neighbours, >= 1; all training features where there are fewer.
        temperature: > 0; the smaller, the more the nearest ones count.

    Returns:
        Percent.

    Source: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", section 3.4; with
        20 neighbours in Caron et al., "Emerging properties in self-supervised vision transformers" (arXiv:2104.14294).
    """
    num_classes = _num_classes(train_labels, test_labels)
    hits = []
    for features, labels in zip(torch.split(test_features, _CHUNK), torch.split(test_labels, _CHUNK), strict=True):
        cosines = cosine_similarity(features.double(), train_features.double())
        nearest = cosines.topk(min(k, len(train_features)), dim=1)
        # A softmax scales the weights of one feature by a common factor, which keeps the exponential in range.
        weights = (nearest.values / temperature).softmax(dim=1)
        votes = weights.new_zeros(len(features), num_classes)
        votes.scatter_add_(1, train_labels[nearest.indices], weights)
        hits.append(in_top_k(votes, labels, 1))
    return _percent(torch.cat(hits))


def linear_probe_accuracy(
    train_features: Float[Tensor, "N D"],
    train_labels: Int64[Tensor, "N"],
    test_features: Float[Tensor, "M D"],
    test_labels: Int64[Tensor, "M"],
) -> float:
    """Share of test features that a linear classifier of the training features puts into their class.

    The classifier is ridge regression on one-hot labels, over features whose coordinates have zero mean and unit
    variance, with an intercept. Of `PENALTIES` it takes the one with the smallest squared error when each training
    feature is predicted from all others. All of this has a closed form, so nothing is drawn or tuned, and features of
    an untrained and of a trained network are treated alike.

    Args:
        train_features: of any scale.
        train_labels: class numbers from 0.
        test_features: of any scale.
        test_labels: class numbers from 0; a class without training features is always missed.

    Returns:
        Percent. Two equal highest scores are a miss.
    """
    mean, spread = train_features.double().mean(dim=0), train_features.double().std(dim=0, correction=0)
    spread = torch.where(spread > _CONSTANT * mean.abs(), spread, 1.0)
    train, test = ((features.double() - mean) / spread for features in (train_features, test_features))
    target = one_hot(train_labels, _num_classes(train_labels, test_labels)).double()
    prior = target.mean(dim=0)
    # In the coordinates of the eigenvectors every penalty divides by other numbers and nothing else changes.
    variance, directions = torch.linalg.eigh(train.T @ train)
    rotated = train @ directions
    moment = rotated.T @ (target - prior)
    penalties = [len(train) * penalty for penalty in PENALTIES]
    errors = [_left_out_error(rotated, target - prior, moment, variance + penalty) for penalty in penalties]
    penalty = penalties[int(torch.stack(errors).argmin())]
    scores = test @ directions @ (moment / (variance + penalty)[:, None]) + prior
    return _percent(in_top_k(scores, test_labels, 1))


def effective_rank(features: Float[Tensor, "N D"]) -> float:
    """Number of directions that the features fill evenly, or would fill: ``exp(-sum p log p)``.

    ``p`` are the singular values divided by their sum. Equal features have rank 1, the sign of a collapse; the most
    that can be reached is the smaller of N and D.

    Args:
        features: at least one; not centred, so a large common part lowers the rank.

    Source: Roy and Vetterli, "The effective rank", 2007; as a judge of pre-training in Garrido et al., "RankMe"
        (arXiv:2210.02885).
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def mean_cosine(features: Float[Tensor, "N D"]) -> float:
    """Mean cosine of two different features; 1 when all point the same way. NaN of fewer than two.

    Args:
        features: of any scale.
    """
    num = len(features)
    if num < 2:
        return math.nan
    unit = normalize(features.double(), dim=1)
    total, own = unit.sum(dim=0).square().sum(), unit.square().sum()
    return float((total - own) / (num * (num - 1)))


def _left_out_error(rotated: Tensor, target: Tensor, moment: Tensor, divisor: Tensor) -> Tensor:
    """Mean squared error when each row is predicted by a ridge regression that has not seen it.

    Source: the residual divided by one minus the leverage (Allen's PRESS statistic); the intercept's leverage is 1/N.
    """
    residual = target - rotated @ (moment / divisor[:, None])
    leverage = 1 / len(rotated) + rotated.square() @ (1 / divisor)
    return (residual / (1 - leverage).clamp_min(_CONSTANT)[:, None]).square().mean()


def _num_classes(*labels: Tensor) -> int:
    return 1 + int(torch.cat(labels).max())


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())

import math

import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from ivt2.metrics import probing
from ivt2.metrics.probing import (
    PENALTIES,
    LabelledFeatures,
    effective_rank,
    knn_accuracy,
    linear_probe_accuracy,
    mean_cosine,
    probe_metrics,
)


def blobs(num, *, classes=4, width=6, noise=1.0, seed=0):
    """Classes around centres that every seed shares."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (num,), generator=generator)
    features = centres[labels] + noise * torch.randn(num, width, generator=generator) + 3
    return LabelledFeatures(features, labels)


def loop_knn(train, test, k, temperature):
    hits = 0
    for feature, label in zip(test.features.tolist(), test.labels.tolist(), strict=True):
        found = []
        for other, its_label in zip(train.features.tolist(), train.labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(feature, other, strict=True))
            found.append((dot / math.hypot(*feature) / math.hypot(*other), its_label))
        votes = {}
        for cosine, its_label in sorted(found, reverse=True)[:k]:
            votes[its_label] = votes.get(its_label, 0) + math.exp(cosine / temperature)
        hits += max(votes, key=votes.get) == label
    return 100 * hits / len(test.labels)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.02), (9, 0.5), (100, 0.07)])
def test_nearest_neighbours_equal_a_loop(monkeypatch, k, temperature):
    monkeypatch.setattr(probing, "_CHUNK", 16)
    train, test = blobs(40), blobs(37, seed=1)
    found = knn_accuracy(*train, *test, k=k, temperature=temperature)
    assert found == pytest.approx(loop_knn(train, test, k, temperature))
    assert 30 < found < 100


def test_a_low_temperature_does_not_overflow():
    train = blobs(40)
    assert knn_accuracy(*train, *train, k=40, temperature=1e-4) == 100


def test_equal_votes_are_a_miss():
    train = LabelledFeatures(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    test = LabelledFeatures(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert knn_accuracy(*train, *test, k=2) == 0
    assert linear_probe_accuracy(*train, *test) == 0


@pytest.mark.parametrize(("num", "width"), [(200, 6), (60, 6), (30, 50)])
def test_linear_probe_equals_another_library(num, width):
    train, test = blobs(num, width=width, noise=1.5), blobs(300, width=width, noise=1.5, seed=1)
    scaler = StandardScaler().fit(train.features.double().numpy())
    judge = RidgeCV([num * penalty for penalty in PENALTIES])
    judge.fit(
        scaler.transform(train.features.double().numpy()), torch.nn.functional.one_hot(train.labels).double().numpy()
    )
    predicted = judge.predict(scaler.transform(test.features.double().numpy())).argmax(axis=1)
    expected = 100 * (predicted == test.labels.numpy()).mean()
    assert linear_probe_accuracy(*train, *test) == pytest.approx(expected)
    assert PENALTIES[0] < judge.alpha_ / num < PENALTIES[-1]
    assert 35 < expected < 99


def test_the_penalty_is_chosen_as_by_leaving_each_feature_out():
    train = blobs(30, width=20, noise=2)
    centred = train.features.double() - train.features.double().mean(dim=0)
    target = torch.nn.functional.one_hot(train.labels).double()
    variance, directions = torch.linalg.eigh(centred.T @ centred)
    rotated, around = centred @ directions, target - target.mean(dim=0)
    for penalty in (0.1, 3.0, 100.0):
        found = probing._left_out_error(rotated, around, rotated.T @ around, variance + penalty)
        errors = []
        for left_out in range(30):
            kept = torch.arange(30) != left_out
            mean, prior = centred[kept].mean(dim=0), target[kept].mean(dim=0)
            x, y = centred[kept] - mean, target[kept] - prior
            weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(20), x.T @ y)
            errors.append((centred[left_out] - mean) @ weights + prior - target[left_out])
        assert float(found) == pytest.approx(float(torch.stack(errors).square().mean()))


def test_linear_probe_ignores_scale_shift_and_constant_coordinates():
    train, test = blobs(60, noise=1.5), blobs(200, noise=1.5, seed=1)
    expected = linear_probe_accuracy(*train, *test)

    def moved(data, seed):
        generator = torch.Generator().manual_seed(seed)
        constant = 5 + 1e-6 * torch.randn(len(data.features), 50, generator=generator)
        features = data.features * torch.tensor([1e-3, 1e3, 1, 1, 1, 1]) - 7
        return LabelledFeatures(torch.cat([features, constant], dim=1), data.labels)

    assert linear_probe_accuracy(*moved(train, 7), *moved(test, 8)) == pytest.approx(expected, abs=0.01)


def test_a_class_without_training_features_is_missed():
    train = blobs(40, noise=0.1)
    test = LabelledFeatures(train.features, train.labels.clone())
    test.labels[:10] = 9
    assert knn_accuracy(*train, *test, k=3) == 75
    assert linear_probe_accuracy(*train, *test) == 75


def test_one_training_feature_and_one_class_are_enough():
    one = LabelledFeatures(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))
    found = probe_metrics(one, one)
    assert found["knn_top1"] == found["linear_top1"] == 100
    assert found["effective_rank"] == pytest.approx(1)
    assert math.isnan(found["mean_cosine"])


def test_effective_rank_counts_even_directions():
    assert effective_rank(1e-3 * torch.eye(5).repeat(3, 1)) == pytest.approx(5)
    assert effective_rank(torch.ones(8, 4)) == pytest.approx(1)
    assert effective_rank(torch.zeros(8, 4)) == 1
    shares = [0.5, 0.3, 0.2]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    assert effective_rank(4 * torch.diag(torch.tensor(shares)) @ rotation) == pytest.approx(expected, abs=1e-5)


def test_mean_cosine_equals_a_loop():
    features = blobs(9).features - 3
    pairs = [(a, b) for a in range(9) for b in range(9) if a != b]
    cosines = [torch.cosine_similarity(features[a], features[b], dim=0) for a, b in pairs]
    assert mean_cosine(features) == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-6)
    assert mean_cosine(torch.ones(4, 3)) == pytest.approx(1)


def test_metrics_of_a_set_and_of_a_diverged_network():
    train, test = blobs(40), blobs(37, seed=1)
    found = probe_metrics(train, test, k=3, temperature=0.1)
    assert found == {
        "knn_top1": knn_accuracy(*train, *test, k=3, temperature=0.1),
        "linear_top1": linear_probe_accuracy(*train, *test),
        "effective_rank": effective_rank(test.features),
        "mean_cosine": mean_cosine(test.features),
    }
    test.features[0, 0] = torch.inf
    broken = probe_metrics(train, test)
    assert list(broken) == list(found)
    assert all(map(math.isnan, broken.values()))

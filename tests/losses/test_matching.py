import math

import pytest
import torch

from ivt2.losses.matching import (
    IGNORED,
    Negatives,
    admissible_negatives,
    hard_negatives,
    matching_loss,
    matching_pairs,
    negative_weights,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def features(num, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=generator), torch.randn(num, width, generator=generator)


def slow_draw(scores, ids, groups, noise):
    """Walk along each row until the draw is used up."""
    chosen = []
    for i, row in enumerate(scores.tolist()):
        weights = [
            math.exp(score) if ids[j] != ids[i] and groups[j] == groups[i] else 0.0 for j, score in enumerate(row)
        ]
        left = float(noise[i]) * sum(weights)
        for j, weight in enumerate(weights):
            left -= weight
            if weight and left < 0:
                chosen.append(j)
                break
        else:
            chosen.append(i)
    return chosen


def test_admissible_ones_differ_in_id_and_share_the_group():
    admissible = admissible_negatives(torch.tensor([7, 8, 7, 9]), 4, group_size=3)
    assert admissible.int().tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_without_ids_only_the_row_itself_is_inadmissible():
    assert torch.equal(admissible_negatives(None, 3), ~torch.eye(3, dtype=torch.bool))


def test_weights_by_hand():
    similarity = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 3.0]])
    total = 1 + math.e + math.e**2
    weights = negative_weights(similarity, torch.tensor([5, 6, 5]))
    torch.testing.assert_close(weights[0], torch.tensor([0, math.e / total, 0]))
    torch.testing.assert_close(weights[1], torch.tensor([1 / 3, 0, 1 / 3]))


def test_weights_that_are_not_finite_become_small_and_even():
    similarity = torch.zeros(3, 3)
    similarity[1] = torch.nan
    weights = negative_weights(similarity)
    torch.testing.assert_close(weights[1], torch.tensor([0.01, 0, 0.01]))


@pytest.mark.parametrize("group_size", [None, 2, 3])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 0]])
def test_hard_negatives_against_a_loop(ids, group_size):
    visual, text = features(6)
    groups = [i // (group_size or 6) for i in range(6)]
    for seed in range(20):
        noise = torch.rand(6, 2, generator=torch.Generator().manual_seed(seed))
        found = hard_negatives(visual, text, 0.5, torch.tensor(ids), noise, group_size=group_size)
        scores = torch.nn.functional.cosine_similarity(visual[:, None], text[None], dim=2).double() / 0.5
        assert found.vision.tolist() == slow_draw(scores.T, ids, groups, noise[:, 0])
        assert found.text.tolist() == slow_draw(scores, ids, groups, noise[:, 1])


@pytest.mark.parametrize("hard", [True, False])
def test_draws_follow_the_weights(hard):
    visual, text = features(4, seed=3)
    ids = torch.tensor([1, 2, 3, 1])
    even = (torch.arange(1000) + 0.5) / 1000
    drawn = torch.stack([
        hard_negatives(visual, text, 0.3, ids, each.expand(4, 2), hard=hard).text for each in even.float()
    ])
    counts = torch.stack([(drawn == column).float().mean(dim=0) for column in range(4)], dim=1)
    similarity = torch.nn.functional.cosine_similarity(visual[:, None], text[None], dim=2) / 0.3
    expected = negative_weights(similarity if hard else torch.zeros(4, 4), ids)
    torch.testing.assert_close(counts, expected / expected.sum(1, keepdim=True), atol=1e-3, rtol=0)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24, 1.0])
def test_extreme_draws_stay_admissible(draw, hard):
    visual, text = features(5)
    ids = torch.tensor([1, 2, 3, 3, 1])
    found = hard_negatives(visual, text, 0.01, ids, torch.full((5, 2), draw), hard=hard)
    rows = torch.arange(5)
    for chosen in (found.vision, found.text):
        assert admissible_negatives(ids, 5)[rows, chosen].all()


def test_a_confident_batch_still_finds_its_negatives():
    """The weights as the reference takes them underflow to zero here."""
    scores = torch.eye(4)
    assert negative_weights(scores / 0.001).sum() == 0
    found = hard_negatives(scores, scores, 0.001, None, torch.rand(4, 2))
    assert found.valid.all()
    for chosen in (found.vision, found.text):
        assert admissible_negatives(None, 4)[torch.arange(4), chosen].all()


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("ids", [[], [3], [3, 3, 3]])
def test_no_negative_exists(ids, hard):
    num = len(ids)
    visual, text = features(num)
    found = hard_negatives(visual, text, 0.07, torch.tensor(ids, dtype=torch.int64), torch.rand(num, 2), hard=hard)
    assert found.valid.tolist() == [False] * num
    assert found.vision.tolist() == found.text.tolist() == list(range(num))
    assert matching_pairs(found).label.tolist() == [1] * num + [IGNORED] * 2 * num


def test_features_that_are_not_numbers_do_not_stop_training():
    visual, text = features(3)
    visual[1] = torch.nan
    found = hard_negatives(visual, text, 0.07, None, torch.rand(3, 2))
    for chosen in (found.vision, found.text):
        assert admissible_negatives(None, 3)[torch.arange(3), chosen].all()


def test_mining_takes_no_gradient():
    visual, text = (x.requires_grad_() for x in features(3))
    assert not hard_negatives(visual, text, 0.07, None, torch.rand(3, 2)).vision.requires_grad
    assert visual.grad is None


def test_pairs_stand_in_the_order_of_the_reference():
    pairs = matching_pairs(
        Negatives(torch.tensor([1, 0, 2]), torch.tensor([1, 0, 2]), torch.tensor([True, True, False]))
    )
    assert pairs.vision.tolist() == [0, 1, 2, 1, 0, 2, 0, 1, 2]
    assert pairs.text.tolist() == [0, 1, 2, 0, 1, 2, 1, 0, 2]
    assert pairs.label.tolist() == [1, 1, 1, 0, 0, IGNORED, 0, 0, IGNORED]


def test_loss_sums_over_the_pairs_that_count():
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0], [2.0, -1.0], [5.0, 5.0]])
    total, count = matching_loss(logits, torch.tensor([1, 1, 0, IGNORED]))
    expected = math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-3))
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert count.item() == 3


@pytest.mark.parametrize("num", [0, 2])
def test_loss_of_no_pair_is_a_zero_with_a_graph(num):
    logits = torch.randn(num, 2, requires_grad=True)
    total, count = matching_loss(logits, torch.full((num,), IGNORED))
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert torch.equal(logits.grad, torch.zeros(num, 2))

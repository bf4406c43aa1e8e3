import torch

from ivt2.metrics.classification import in_top_k, merge_views


def test_views_are_merged_as_probabilities_not_as_logits():
    """One very sure view does not outvote two; as logits it would."""
    logits = torch.tensor([[[100.0, 0.0], [0.0, 3.0], [0.0, 3.0]]])
    merged = merge_views(logits)
    torch.testing.assert_close(merged.sum(dim=1), torch.ones(1))
    assert merged.argmax().item() == 1
    assert logits.mean(dim=1).argmax().item() == 0


def test_label_among_the_best():
    scores = torch.tensor([[0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.2, torch.nan, 0.1]])
    labels = torch.tensor([2, 0, 1])
    assert in_top_k(scores, labels, 1).tolist() == [False, False, False]
    assert in_top_k(scores, labels, 2).tolist() == [True, False, False]
    assert in_top_k(scores, labels, 3).tolist() == [True, True, True]

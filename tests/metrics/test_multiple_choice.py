import math

import torch

from ivt2.metrics.multiple_choice import choice_probabilities


def test_probabilities_by_hand():
    options = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]])
    weights = [math.exp(cosine / 0.5) for cosine in (1, 0, -1)]
    expected = torch.tensor([[weight / sum(weights) for weight in weights]])
    torch.testing.assert_close(choice_probabilities(torch.tensor([[5.0, 0.0]]), options, 0.5), expected)


def test_each_clip_has_its_own_options():
    visual = torch.eye(2)
    options = torch.stack([torch.eye(2), torch.eye(2).flip(0)])
    assert choice_probabilities(visual, options, 0.1).argmax(dim=1).tolist() == [0, 0]

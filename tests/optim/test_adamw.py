"""Oracle: fused steps against torch's loop; clipping stays possible."""

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from ivt2.optim.adamw import adamw


def test_fused_steps_are_those_of_the_loop():
    def train(**options):
        torch.manual_seed(0)
        network = nn.Linear(6, 5)
        groups = [{"params": [network.weight]}, {"params": [network.bias], "weight_decay": 0.0}]
        optimizer = adamw(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05, **options)
        for _ in range(4):
            optimizer.zero_grad()
            network(torch.randn(3, 6)).square().sum().backward()
            optimizer.step()
        return network.state_dict()

    torch.testing.assert_close(train(), train(fused=False), rtol=1e-6, atol=1e-7)


def test_gradients_can_be_clipped_in_mixed_precision():
    weight = nn.Parameter(torch.ones(4))
    weight.grad = torch.full((4,), 10.0)
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(adamw([weight]), 1.0)
    assert weight.grad.norm().item() <= 1.0

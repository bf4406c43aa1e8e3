"""Run by test_stage2.py in two processes; each writes losses and the gradients averaged over ranks."""

import os
import sys

import torch
import torch.distributed as dist

from ivt2.losses.contrast import Contrast
from tests.modules.stage2_case import batch, make

SHARES = {"even": ((0, 1, 2, 3), (4, 5, 6, 7)), "uneven": ((0, 1, 2, 3), (4,)), "one empty": ((0, 1, 2), ())}


def averaged(module):
    """Data-parallel engines sum the gradients of all ranks and divide by their number."""
    found = {}
    for name, parameter in module.model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(grad)
        found[name] = grad / dist.get_world_size()
    return found


def step(rows, **options):
    module = make(negatives_group=2, **options)
    loss = module.training_step(batch(rows), 0)
    loss.backward()
    value = loss.detach().clone()
    dist.all_reduce(value)
    return {"loss": value / dist.get_world_size(), "gradients": averaged(module)}


def run(rank):
    found = {name: step(shares[rank]) for name, shares in SHARES.items()}
    only = {"terms": {"vtc": 1.0}}
    found["default"] = step(SHARES["even"][rank], **only)
    found["reference"] = step(SHARES["even"][rank], contrast=Contrast(reference_gradient_scale=True), **only)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    torch.save(run(dist.get_rank()), f"{sys.argv[1]}/{dist.get_rank()}.pt")
    dist.destroy_process_group()

"""Run by test_stage1.py in two processes; each writes losses and the gradients averaged over ranks."""

import os
import sys

import torch
import torch.distributed as dist

from tests.modules.masked_case import batch, stage1, step

SHARES = {"even": ((0, 1), (2, 3)), "uneven": ((0, 1, 2), (3,)), "one empty": ((0, 1), ())}


def averaged(module):
    """Data-parallel engines sum the gradients of all ranks and divide by their number."""
    found = {}
    for name, parameter in module.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(grad)
        found[name] = grad / dist.get_world_size()
    return found


def run(rank):
    found = {}
    for name, shares in SHARES.items():
        module = stage1(masks_per_clip=2)
        loss, logged = step(module, batch(shares[rank]))
        loss.backward()
        found[name] = {"logged": logged, "gradients": averaged(module), "masked": module.last_masked}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    torch.save(run(dist.get_rank()), f"{sys.argv[1]}/{dist.get_rank()}.pt")
    dist.destroy_process_group()

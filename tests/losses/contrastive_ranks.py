"""Run by test_contrastive_local.py in four processes, which then part into two pairs; each writes what it found."""

import os
import sys
from itertools import product

import torch
import torch.distributed as dist

from ivt2.losses.contrastive_local import local_contrastive_loss
from ivt2.losses.sigmoid import sigmoid_loss

SIZES = {4: {"even": (2, 2, 2, 2), "uneven": (3, 0, 1, 4)}, 2: {"even": (4, 4), "uneven": (0, 5)}}
IDS = {"none": None, "some": [4, 9, 4, 1, 2, 9, 6, 4], "all": [3] * 8}
FORMS = ("softmax", "sigmoid")
CHUNKS = {"even": None, "uneven": 2}
CASES = {
    f"{form}/{world}/{sizes}/{ids}": (form, world, sizes, ids)
    for form, world, sizes, ids in product(FORMS, SIZES, CHUNKS, IDS)
}


def leaves(num):
    """Features of both modalities, temperature and bias, which all get gradients."""
    generator = torch.Generator().manual_seed(7)
    visual, text = torch.randn(2, num, 6, generator=generator, dtype=torch.float64)
    parameters = torch.tensor([0.2], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64)
    return [x.clone().requires_grad_() for x in (visual, text, *parameters)]


def share(case, rank):
    """Loss and gradients of one rank."""
    form, world, sizes, ids = case
    chunk = CHUNKS[sizes]
    bounds = [sum(SIZES[world][sizes][:number]) for number in range(world + 1)]
    rows = slice(bounds[rank], bounds[rank + 1])
    visual, text, temperature, bias = leaves(bounds[-1])
    own_ids = None if IDS[ids] is None else torch.tensor(IDS[ids])[: bounds[-1]][rows]
    if form == "softmax":
        loss = local_contrastive_loss(visual[rows], text[rows], temperature, own_ids, chunk=chunk)
    else:
        loss = sigmoid_loss(visual[rows], text[rows], temperature, bias, own_ids, chunk=chunk)
    loss.backward()
    grads = {"visual": visual.grad, "text": text.grad, "temperature": temperature.grad, "bias": bias.grad}
    return {"loss": loss.detach()} | {name: grad for name, grad in grads.items() if grad is not None}


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, folder, found = int(os.environ["RANK"]), sys.argv[1], {}
    for world in SIZES:
        meeting = f"file://{folder}/meeting_{world}_{rank // world}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank % world, world_size=world)
        for name, case in CASES.items():
            if case[1] == world:
                found[name] = share(case, rank % world)
        dist.barrier()
        dist.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")

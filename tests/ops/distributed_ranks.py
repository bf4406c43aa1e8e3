"""Run by test_distributed.py in two processes; each writes what it found as a torch file."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ivt2.losses.contrastive import contrastive_loss
from ivt2.losses.matching import hard_negatives
from ivt2.ops.distributed import all_gather, gather_objects, global_mean, rank_and_world

SIZES = {"even": (3, 3), "ragged": (1, 4), "one_empty": (5, 0)}


def data(num):
    generator = torch.Generator().manual_seed(7)
    clips, captions, noise = (torch.rand(num, width, generator=generator) for width in (6, 5, 2))
    return clips - 0.5, captions - 0.5, noise, torch.tensor([4, 9, 4, 1, 2, 3, 6, 8])[:num]


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Linear(6, 4)
        self.text = nn.Linear(5, 4)
        self.temperature = nn.Parameter(torch.tensor([0.3]))

    def forward(self, clips, captions, ids, reference_gradient_scale):
        visual, text = (
            all_gather(x, reference_gradient_scale=reference_gradient_scale)
            for x in (self.visual(clips), self.text(captions))
        )
        return contrastive_loss(visual, text, self.temperature, all_gather(ids))


def gradients(module):
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def contrastive_gradients(sizes, rank, reference_gradient_scale):
    bounds = (0, sizes[0]) if rank == 0 else (sizes[0], sum(sizes))
    clips, captions, _, ids = (x[slice(*bounds)] for x in data(sum(sizes)))
    towers = DistributedDataParallel(Towers())
    loss = towers(clips, captions, ids, reference_gradient_scale)
    loss.backward()
    return {"loss": loss.detach()} | gradients(towers.module)


def one_output():
    torch.manual_seed(1)
    return nn.Linear(6, 1)


def mean_gradients(sizes, rank):
    """Mean over the items of all ranks, ranks having different numbers."""
    bounds = (0, sizes[0]) if rank == 0 else (sizes[0], sum(sizes))
    clips = data(sum(sizes))[0][slice(*bounds)]
    layer = DistributedDataParallel(one_output())
    total = layer(clips).exp().sum()
    loss = global_mean(total, torch.tensor(len(clips)))
    loss.backward()
    return {"loss": loss.detach()} | gradients(layer.module)


def run(rank):
    found = {"rank_and_world": rank_and_world()}
    for name, sizes in SIZES.items():
        for reference in (False, True):
            found[f"contrastive/{name}/{reference}"] = contrastive_gradients(sizes, rank, reference)
        found[f"mean/{name}"] = mean_gradients(sizes, rank)
    own = SIZES["ragged"][rank]
    found["bool"] = all_gather(torch.arange(own) % 2 == 0)
    found["int"] = all_gather(torch.arange(own * 2).view(own, 2) + 100 * rank)
    found["bfloat16"] = all_gather(torch.full((own, 2), rank + 0.5, dtype=torch.bfloat16))
    found["nothing"] = all_gather(torch.zeros(0, 3))
    found["objects"] = gather_objects({"rank": rank, "words": ["a"] * own})
    found["nothing counted"] = global_mean(torch.zeros(()), 0)
    clips, captions, noise, ids = (x.view(2, 4, *x.shape[1:])[rank] for x in data(8))
    negatives = hard_negatives(clips[:, :5], captions, 0.2, ids, noise, group_size=2)
    found["negatives"] = torch.stack([all_gather(rows + 4 * rank) for rows in negatives[:2]])
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    torch.save(run(dist.get_rank()), f"{sys.argv[1]}/{dist.get_rank()}.pt")
    dist.destroy_process_group()

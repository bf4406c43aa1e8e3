"""Run by test_stage2_ranks.py in two processes; each writes losses and the gradients averaged over ranks.

CLIP post-training takes its steps here too.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from ivt2.losses.contrast import Contrast
from ivt2.ops.sharding import shard
from tests.modules import clip_case, clip_ranks
from tests.modules.stage2_case import batch, fit, hearing, make, whole

SHARES = {"even": ((0, 1, 2, 3), (4, 5, 6, 7)), "uneven": ((0, 1, 2, 3), (4,)), "one empty": ((0, 1, 2), ())}
HEARING = {
    "chunks": {"encode_chunk": 1, "contrast": Contrast(chunk=2)},
    "sigmoid": {"terms": {"avtc": 1.0}, "logit_bias": -2.0, "contrast": Contrast(form="sigmoid")},
}
"""Options of a module that hears, with which ranks of different sizes take a step."""


def averaged(module):
    """Data-parallel engines sum the gradients of all ranks and divide by their number."""
    found = {}
    for name, parameter in module.model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(grad)
        found[name] = grad / dist.get_world_size()
    return found


def taken(module, data):
    loss = module.training_step(data, 0)
    loss.backward()
    value = loss.detach().clone()
    dist.all_reduce(value)
    return {"loss": value / dist.get_world_size(), "gradients": averaged(module)}


def step(rows, **options):
    return taken(make(negatives_group=2, **options), batch(rows))


class Step(torch.nn.Module):
    """What a data-parallel engine wraps."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, data):
        return self.module.training_step(data, 0)


def replicated(rank):
    """Weights after steps of one medium each, as `trainer=ddp` takes them, chunk by chunk."""
    module = hearing(negatives_group=2, encode_chunk=3)
    fit(module, DistributedDataParallel(Step(module), find_unused_parameters=True), SHARES["even"][rank])
    return {name: each.detach() for name, each in module.model.named_parameters()}


def sharded(rank):
    """The same as `trainer=fsdp2` takes them, with ranks of different sizes."""
    module = hearing(negatives_group=2, encode_chunk=2)
    mesh = init_device_mesh("cpu", (2,))
    shard(module.model, mesh, units=module.model.sharding_units(), methods=module.model.ENTRY_POINTS)
    fit(module, Step(module), SHARES["uneven"][rank])
    return {name: each.detach().full_tensor() for name, each in module.model.named_parameters()}


def run(rank):
    found = {name: step(shares[rank]) for name, shares in SHARES.items()}
    only = {"terms": {"vtc": 1.0}}
    found["default"] = step(SHARES["even"][rank], **only)
    found["reference"] = step(SHARES["even"][rank], contrast=Contrast(reference_gradient_scale=True), **only)
    for name, options in HEARING.items():
        found[name] = taken(hearing(negatives_group=2, **options), whole(rows=SHARES["uneven"][rank]))
    for form in clip_ranks.FORMS:
        for name, shares in SHARES.items():
            found[f"clip {form} {name}"] = taken(clip_ranks.build(form), clip_case.batch(shares[rank]))
    return found | {"replicated": replicated(rank), "sharded": sharded(rank)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    torch.save(run(dist.get_rank()), f"{sys.argv[1]}/{dist.get_rank()}.pt")
    dist.destroy_process_group()

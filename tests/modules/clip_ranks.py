"""Run by test_clip.py in two processes; each writes losses and the gradients averaged over ranks."""

import os
import sys

import torch
import torch.distributed as dist

from ivt2.losses.contrast import Contrast
from tests.modules.clip_case import FROZEN, batch, make, make_model
from tests.modules.stage2_ranks import SHARES, averaged

FORMS = {"softmax": {}, "chunked": {"chunk": 2}, "sigmoid": {"form": "sigmoid", "chunk": 2}}


def build(form):
    bias = -2.0 if form == "sigmoid" else None
    return make(make_model(logit_bias=bias), contrast=Contrast(**FORMS[form]), **FROZEN)


def step(form, rows):
    module = build(form)
    loss = module.training_step(batch(rows), 0)
    loss.backward()
    value = loss.detach().clone()
    dist.all_reduce(value)
    return {"loss": value / dist.get_world_size(), "gradients": averaged(module)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    rank = dist.get_rank()
    found = {(form, name): step(form, shares[rank]) for form in FORMS for name, shares in SHARES.items()}
    torch.save(found, f"{sys.argv[1]}/{rank}.pt")
    dist.destroy_process_group()

"""Run by test_retrieval_evaluation.py in two processes; each writes the metrics that it found."""

import os
import sys

import torch
import torch.distributed as dist

from tests.metrics.retrieval_evaluation_case import VIEWS, computed

SHARES = {
    "uneven": ([[3, 0], [4, 6]], [[2], [1, 5]]),
    "padded": ([[0, 1, 2], [3, 4]], [[5, 6], [0, 3]]),
    "an empty batch": ([[0, 1, 2], [6]], [[5, 3, 4], []]),
    "nothing": ([[6, 1, 4, 0], [2, 3, 5]], []),
}


def run(rank):
    return {
        f"{name}/{top_k}": computed(shares[rank], top_k, views=VIEWS).metrics
        for name, shares in SHARES.items()
        for top_k in (2, 9)
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    torch.save(run(dist.get_rank()), f"{sys.argv[1]}/{dist.get_rank()}.pt")
    dist.destroy_process_group()

"""Run by test_retrieval.py in two processes; each writes what it found as a torch file."""

import os
import sys

import torch
import torch.distributed as dist

from ivt2.metrics.retrieval import RetrievalMetric, rerank

CAPTIONS = (2, 1, 3, 1, 2)
"""Of each clip."""


def evaluation_set():
    """Features of clips and captions, and the clip of each caption."""
    generator = torch.Generator().manual_seed(3)
    clip_of_caption = torch.repeat_interleave(torch.arange(len(CAPTIONS)), torch.tensor(CAPTIONS))
    visual, text = (torch.randn(num, 4, generator=generator) for num in (len(CAPTIONS), len(clip_of_caption)))
    return visual, text, clip_of_caption


def add(metric, clips):
    """One batch, its clips in the given order."""
    visual, text, clip_of_caption = evaluation_set()
    captions = torch.cat([(clip_of_caption == clip).nonzero()[:, 0] for clip in clips])
    index = torch.tensor(clips)
    metric.update(visual[index], 10 * index, text[captions], 10 * clip_of_caption[captions])


def summary(result):
    return {
        "similarity": result.similarity,
        "clip_of_caption": result.clip_of_caption,
        "index": result.index,
        "metrics": result.metrics,
    }


def found_with(batches):
    metric = RetrievalMetric(chunk=2)
    for clips in batches:
        add(metric, clips)
    return metric.compute()


def slow_scores(clip, caption):
    """A stand-in for a matching head."""
    return ((clip * 7 + caption * 5) % 11).float()


def run(rank):
    padded = found_with([[[3, 0], [4]], [[2, 1], [3]]][rank])
    lopsided = found_with([[[1, 4, 0], [2, 3]], []][rank])
    calls = []

    def counting(clip, caption):
        calls.append(len(clip))
        return slow_scores(clip, caption)

    owner = torch.tensor([0, 1, 0, 0, 0])
    return {
        "padded": summary(padded),
        "lopsided": summary(lopsided),
        "even": torch.cat([scores.flatten() for scores in rerank(padded.similarity, 2, slow_scores, chunk=3)]),
        "owned": torch.cat([
            scores.flatten() for scores in rerank(padded.similarity, 2, counting, chunk=3, owner=owner)
        ]),
        "calls": calls,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    torch.save(run(dist.get_rank()), f"{sys.argv[1]}/{dist.get_rank()}.pt")
    dist.destroy_process_group()

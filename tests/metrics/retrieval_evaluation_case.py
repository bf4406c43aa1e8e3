"""A small evaluation set with a matching head that a loop can follow; shared by the test and its ranks."""

import torch

from ivt2.metrics.retrieval_evaluation import RetrievalEvaluation, RetrievalFeatures

CAPTIONS = (2, 1, 3, 1, 2, 1, 1)
"""Of each clip."""


def evaluation_set():
    """Features and tokens of all clips and captions; a clip's position in the set is ten times its number."""
    generator = torch.Generator().manual_seed(5)
    clip = torch.repeat_interleave(torch.arange(len(CAPTIONS)), torch.tensor(CAPTIONS))
    visual, textual = (torch.randn(num, 4, generator=generator) for num in (len(CAPTIONS), len(clip)))
    vision_tokens = torch.randn(len(CAPTIONS), 3, 5, generator=generator)
    text_tokens = torch.randn(len(clip), 6, 5, generator=generator)
    valid = torch.arange(6) < torch.randint(1, 7, (len(clip), 1), generator=generator)
    return clip, visual, textual, vision_tokens, text_tokens, valid


def match(text_tokens, valid, rows, vision_tokens):
    """Logits that depend on all arguments, and on the order of the tokens."""
    text = (text_tokens * valid[..., None] * torch.arange(1, 7)[:, None]).sum(dim=1)
    vision = (vision_tokens[rows] * torch.arange(1, 4)[:, None]).sum(dim=1)
    positive = (text * vision).sum(dim=1)
    return torch.stack([-positive, positive], dim=1)


VIEWS = ("v", "a", "av")


def seen_as(view, features):
    """Features of a view, made of those of the first: different ones, of the same shape."""
    return features if view == "v" else -0.5 * features.roll(len(view), dims=1)


def match_both(text_tokens, valid, rows, audio_tokens, vision_tokens):
    """A head that looks at sound and pictures, in this order."""
    return match(text_tokens, valid, rows, audio_tokens - 2 * vision_tokens)


HEADS = {"v": match, "a": match, "av": match_both}


def collected(batches, views=("v",)):
    """An evaluation that saw batches, each a list of clip numbers; captions of a batch are as long as its longest."""
    clip, visual, textual, vision_tokens, text_tokens, valid = evaluation_set()
    evaluation = RetrievalEvaluation(views, matched=views)
    for numbers in batches:
        rows = torch.tensor([row for number in numbers for row in (clip == number).nonzero()[:, 0].tolist()])
        rows, own = rows.long(), torch.tensor(numbers).long()
        length = int(valid[rows].sum(dim=1).max()) if numbers else 6
        evaluation.update(
            index=10 * own,
            clip_of_caption=10 * clip[rows],
            features=RetrievalFeatures(
                {view: seen_as(view, visual[own]) for view in views},
                {letter: seen_as(letter, vision_tokens[own]) for letter in "va"},
                textual[rows],
                text_tokens[rows, :length],
                valid[rows, :length],
            ),
        )
    return evaluation


def computed(batches, top_k, chunk=4, views=("v",)):
    return collected(batches, views).compute(HEADS, top_k=top_k, device=torch.device("cpu"), chunk=chunk)

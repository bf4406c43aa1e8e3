"""Retrieval metrics, dual softmax, prompt averaging, multiple choice and merging of views."""

import torch
from torch import Tensor

from ivt2.metrics.classification import in_top_k, merge_views
from ivt2.metrics.multiple_choice import choice_probabilities
from ivt2.metrics.retrieval import average_prompts, retrieval_metrics
from ivt2.ops.similarity import dual_softmax
from tests.golden.case import Case

OTHER_NAMES = {"v2t": "txt", "t2v": "img"}
"""The reference's CLIP evaluation names directions by what is retrieved."""


def check(case: Case) -> None:
    compared: set[str] = set()

    def close(name: str, actual: Tensor) -> None:
        case.close(name, actual)
        compared.add(name)

    for name in case.config["sets"]:
        scores = case.inputs[f"{name}_scores"]
        recorded = case.json[name]
        relation = _relation(recorded, scores.shape)
        v2t, t2v = dual_softmax(scores, dim=0), dual_softmax(scores.T, dim=0)
        close(f"{name}_dsl_i2t", v2t)
        close(f"{name}_dsl_t2i", t2v)
        plain = retrieval_metrics(scores, relation)
        softmaxed = retrieval_metrics(scores.softmax(1), relation, scores_t2v=scores.T.softmax(1))
        ours = {
            "plain": plain,
            "plain_softmaxed": softmaxed,
            "clip_names": {_other_name(key): value for key, value in plain.items()},
            "dsl": retrieval_metrics(v2t, relation, scores_t2v=t2v),
        }
        for protocol in recorded.keys() - {"img2txt", "txt2img"}:
            for key, value in recorded[protocol].items():
                assert round(ours[protocol][key], 2) == value, (name, protocol, key)

    prompts = average_prompts(case.inputs["prompt_scores"], case.config["num_prompts"])
    close("prompt_mean_i2t", prompts)
    close("prompt_mean_t2i", prompts.T)
    probabilities = choice_probabilities(case.inputs["mc_image"], case.inputs["mc_text"], float(case.inputs["temp"]))
    close("mc_probs", probabilities)
    assert probabilities.argmax(dim=1).tolist() == case.json["mc_pred"]
    _check_views(case)
    assert compared == set(case.outputs)


def _relation(recorded: dict, shape: torch.Size) -> Tensor:
    """The recorded map from clips to captions; the opposite map must say the same."""
    relation = torch.zeros(shape, dtype=torch.bool)
    opposite = torch.zeros(shape[::-1], dtype=torch.bool)
    for matrix, pairs in ((relation, recorded["img2txt"]), (opposite, recorded["txt2img"])):
        for row, columns in pairs.items():
            matrix[int(row), columns] = True
    assert torch.equal(relation, opposite.T)
    return relation


def _other_name(key: str) -> str:
    for ours, theirs in OTHER_NAMES.items():
        key = key.replace(f"{ours}_", f"{theirs}_")
    return key


def _check_views(case: Case) -> None:
    merged, labels = merge_views(case.inputs["view_logits"]), case.inputs["view_labels"]
    top1, top5 = in_top_k(merged, labels, 1), in_top_k(merged, labels, 5)
    rows = torch.stack([merged.argmax(dim=1), top1, top5, labels], dim=1)
    assert rows.tolist() == case.json["view_merge"]
    percent = torch.stack([top1, top5]).double().mean(dim=1) * 100
    torch.testing.assert_close(percent.tolist(), case.json["view_merge_top1_top5_percent"])

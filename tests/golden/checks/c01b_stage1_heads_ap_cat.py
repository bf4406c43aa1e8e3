"""Classifiers with the other heads: residual perceptron on the pooled vector, and tokens side by side."""

import torch

from ivt2.models.heads import VideoClassifier
from tests.golden.case import Case
from tests.golden.internvideo2 import build_classifier, rename_classifier


@torch.no_grad()
def check(case: Case) -> None:
    video = case.inputs["video"].transpose(1, 2)
    results = {f"{name}_logits": _load(case, name)(video) for name in case.config}
    for output in case.outputs:
        case.close(output, results[output])


def _load(case: Case, name: str) -> VideoClassifier:
    config = case.config[name]
    state = case.state(name)
    classifier = build_classifier(config, extra_mlp="extra_mlp.0.weight" in state)
    if config.get("merge_method") in {"cls_avg1", "cls_avgN"}:
        # Held but not used where the pooled vector is left out.
        del state["fc_norm.weight"], state["fc_norm.bias"]
    classifier.load_state_dict({rename_classifier(key): value for key, value in state.items()})
    return classifier

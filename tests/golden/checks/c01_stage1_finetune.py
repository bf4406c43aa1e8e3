"""Encoder with the classification head of fine-tuning: activations, loss, gradients."""

import torch
from torch.nn.functional import cross_entropy

from tests.golden.case import Case
from tests.golden.internvideo2 import build_classifier, rename_classifier


def check(case: Case) -> None:
    checked: set[str] = set()
    for name, config in case.config.items():
        checked |= _check_model(case, name, config)
    assert checked == set(case.outputs), f"not compared: {set(case.outputs) - checked}"


def _check_model(case: Case, name: str, config: dict) -> set[str]:
    classifier = build_classifier(config)
    classifier.load_state_dict({rename_classifier(key): value for key, value in case.state(name).items()})
    encoder, head, parameters = classifier.encoder, classifier.head, dict(classifier.named_parameters())
    video = case.inputs[f"{name}_video"].transpose(1, 2)

    encoded = encoder(video, taps=(0,))
    features = head.norm(encoded.pooled)
    logits = head(encoded)
    loss = cross_entropy(logits, case.inputs["labels"])
    loss.backward()

    results = {
        "patch_embed": encoder.patch_embed(video).unflatten(1, (encoder.grid_frames, -1)),
        "block0": encoded.intermediates[0],
        "pre_pool_tokens": encoded.tokens,
        "pooled": encoded.pooled,
        "fc_norm": features,
        "logits": logits,
        "loss": loss,
    }
    recorded = case.outputs_of(name)
    for key, output in recorded.items():
        if key == "gradnorms":
            order = case.json["param_order"][name]
            assert {rename_classifier(each) for each in order} == set(parameters)
            norms = torch.stack([parameters[rename_classifier(each)].grad.norm() for each in order])
            case.close(output, norms, atol=1e-6, rtol=2e-4)
        elif key.startswith("grad."):
            case.close(output, parameters[rename_classifier(key.removeprefix("grad."))].grad, atol=1e-6, rtol=2e-4)
        else:
            case.close(output, results[key])
    return set(recorded.values())

"""Encoder with the classification head of fine-tuning: activations, loss, gradients."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.golden.case import Case
from tests.golden.internvideo2 import build_encoder, rename, split_state


def check(case: Case) -> None:
    outputs = dict.fromkeys(case.outputs)
    for name, config in case.config.items():
        for output in _check_model(case, name, config):
            del outputs[output]
    assert not outputs, f"not compared: {list(outputs)}"


def _check_model(case: Case, name: str, config: dict) -> list[str]:
    encoder, head, parameters = _build(case, name, config)
    video = case.inputs[f"{name}_video"].transpose(1, 2)

    encoded = encoder(video, taps=(0,))
    features = head["fc_norm"](encoded.pooled)
    logits = head["head"](features)
    loss = cross_entropy(logits, case.inputs["labels"])
    loss.backward()

    results = {
        "patch_embed": encoder.patch_embed(video),
        "block0": encoded.intermediates[0],
        "pre_pool_tokens": encoded.tokens,
        "pooled": encoded.pooled,
        "fc_norm": features,
        "logits": logits,
        "loss": loss,
    }
    recorded = [output for output in case.outputs if output.startswith(f"{name}_")]
    for output in recorded:
        key = output.removeprefix(f"{name}_")
        if key == "gradnorms":
            order = case.json["param_order"][name]
            assert {rename(each) for each in order} == set(parameters)
            norms = torch.stack([parameters[rename(each)].grad.norm() for each in order])
            case.close(output, norms, atol=1e-6, rtol=2e-4)
        elif key.startswith("grad."):
            case.close(output, parameters[rename(key.removeprefix("grad."))].grad, atol=1e-6, rtol=2e-4)
        else:
            case.close(output, results[key])
    return recorded


def _build(case: Case, name: str, config: dict) -> tuple[nn.Module, nn.ModuleDict, dict[str, Tensor]]:
    encoder = build_encoder(config)
    head = nn.ModuleDict({
        "fc_norm": nn.LayerNorm(encoder.pooled_dim, eps=1e-5),
        "head": nn.Linear(encoder.pooled_dim, config["num_classes"]),
    })
    encoder_state, head_state = split_state(case.state(name), "fc_norm.", "head.")
    encoder.load_state_dict(encoder_state)
    head.load_state_dict(head_state)
    return encoder, head, dict(encoder.named_parameters()) | dict(head.named_parameters())

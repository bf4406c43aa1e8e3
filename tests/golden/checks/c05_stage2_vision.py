"""Stage-2 vision encoder with its aligning decoders: clips and images, masked and not, early exit."""

import re

import torch
from torch import Tensor

from ivt2.models.internvideo2 import InternVideo2
from ivt2.nn.aligning import AligningDecoders
from tests.golden.case import Case
from tests.golden.internvideo2 import (
    CLIP_DECODERS,
    build_clip_decoders,
    build_encoder,
    clip_taps,
    rename_aligning,
    split_state,
)


def check(case: Case) -> None:
    checked: set[str] = set()
    for name, config in case.config.items():
        encoder, decoders = _build(case, name, config)
        taps = clip_taps(config)
        for key, output in case.outputs_of(name).items():
            case.close(output, _result(case, key, encoder, decoders, taps))
            checked.add(output)
    assert checked == set(case.outputs), f"not compared: {set(case.outputs) - checked}"
    assert sorted(case.json["return_index"]) in [clip_taps(config) for config in case.config.values()]


@torch.no_grad()
def _result(case: Case, key: str, encoder: InternVideo2, decoders: AligningDecoders, taps: list[int]) -> Tensor:
    kind, rest = key.split("_", 1)
    video = case.inputs[kind].transpose(1, 2)
    if early := re.fullmatch(r"vis_only(?:_minus(\d+))?", rest):
        return encoder(video, num_blocks=encoder.depth + 1 - int(early[1] or 1)).tokens
    hiding, what = rest.split("_", 1)
    masked = None
    if hiding == "mask":
        recorded = case.inputs[f"mask_{kind}"]
        assert not recorded[:, 0].any()
        masked = recorded[:, 1:]
    encoded = encoder(video, masked, taps)
    aligned = decoders(encoded.intermediates, encoded.pooled, image=kind == "image", masked=masked)
    results = {"vis": encoded.tokens, "pool": encoded.pooled, "clip_align": aligned.middle, "align": aligned.final}
    return results[what]


def _build(case: Case, name: str, config: dict) -> tuple[InternVideo2, AligningDecoders]:
    encoder = build_encoder(config)
    decoders = build_clip_decoders(config, encoder)
    encoder_state, decoder_state = split_state(case.state(name), *CLIP_DECODERS)
    encoder.load_state_dict(encoder_state)
    decoders.load_state_dict({rename_aligning(key): value for key, value in decoder_state.items()})
    return encoder, decoders

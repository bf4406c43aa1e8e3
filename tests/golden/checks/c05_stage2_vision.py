"""Stage-2 vision encoder with its aligning decoders: clips and images, masked and not, early exit."""

import re

import torch
from torch import Tensor

from ivt2.models.internvideo2 import InternVideo2
from ivt2.nn.aligning import AligningDecoders
from tests.golden.case import Case
from tests.golden.internvideo2 import build_encoder, split_state

DECODER_PARAMETERS = ("clip_decoder.", "final_clip_decoder.", "clip_pos_embed", "clip_img_pos_embed")


def check(case: Case) -> None:
    outputs = dict.fromkeys(case.outputs)
    for name, config in case.config.items():
        encoder, decoders = _build(case, name, config)
        taps = _taps(config)
        if "return_index" in case.json:
            assert sorted(case.json["return_index"]) == taps
        for output in list(outputs):
            if output.startswith(f"{name}_"):
                case.close(output, _result(case, output.removeprefix(f"{name}_"), encoder, decoders, taps))
                del outputs[output]
    assert not outputs, f"not compared: {list(outputs)}"


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


def _taps(config: dict) -> list[int]:
    interval = config.get("clip_student_return_interval", 1)
    return sorted(config["depth"] - 1 - int(step * interval) for step in range(config["clip_return_layer"]))


def _build(case: Case, name: str, config: dict) -> tuple[InternVideo2, AligningDecoders]:
    encoder = build_encoder(config)
    decoders = AligningDecoders(
        embed_dim=encoder.embed_dim,
        pooled_dim=encoder.pooled_dim,
        num_layers=config["clip_return_layer"],
        teacher_dim=config["clip_teacher_embed_dim"],
        final_dim=config["clip_teacher_final_dim"],
        num_frames=encoder.grid_frames,
        grid_size=encoder.grid_size,
        separate_image_position=config.get("sep_image_video_pos_embed", False),
        normalize=config.get("clip_norm_type", "l2") == "l2",
    ).eval()
    encoder_state, decoder_state = split_state(case.state(name), *DECODER_PARAMETERS)
    encoder.load_state_dict(encoder_state)
    decoders.load_state_dict(decoder_state)
    return encoder, decoders

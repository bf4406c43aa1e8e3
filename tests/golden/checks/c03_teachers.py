"""Teachers: InternVL per frame, InternVideo2, VideoMAE with ordinary and with the published attention."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.golden.case import Case
from tests.golden.teachers import build_internvideo2, build_internvl, build_videomae, clip_taps

ATTENTION = {"fixedattn": "fixed", "literal": "literal"}


def check(case: Case) -> None:
    results: dict[str, Tensor] = {}
    for name in case.config:
        results |= CHECKS[name](case, name)
    for output in case.outputs:
        case.close(output, results[output])


@torch.no_grad()
def _internvl(case: Case, name: str) -> dict[str, Tensor]:
    teacher = build_internvl(case.config[name], case.state(name))
    video = case.inputs["clip_video"].transpose(1, 2)
    features = teacher(video)
    # Without normalisation the reference returns what its encoder says of each frame.
    frames = teacher.encoder(video.flatten(0, 1).unsqueeze(1), taps=teacher.taps)
    assert sorted(case.json["ivl_return_index"]) == clip_taps(case.config[name])
    return {
        "ivl_middle": features.middle,
        "ivl_final": features.final,
        "ivl_attn": features.attention,
        "ivl_none_middle_last": frames.intermediates[-1],
        "ivl_none_final": frames.pooled,
    }


def _internvideo2(case: Case, name: str) -> dict[str, Tensor]:
    teacher = build_internvideo2(case.config[name], case.state(name))
    features = teacher(case.inputs["iv2_video"].transpose(1, 2))
    assert sorted(case.json["iv2t_return_index"]) == clip_taps(case.config[name])
    return {"iv2t_middle": features.middle, "iv2t_final": features.final, "iv2t_attn": features.attention}


@torch.no_grad()
def _videomae(case: Case, name: str) -> dict[str, Tensor]:
    """All tokens, and those of an encoder that never sees the hidden patches (of the large model these alone)."""
    large = name == "videomae_fulltable"
    source = "mae_full" if large else "mae"
    video, masked = case.inputs[f"{source}_video"].transpose(1, 2), case.inputs[f"{source}_mask"]
    results = {}
    for suffix, attention in ATTENTION.items():
        teacher = build_videomae(case.config[name], case.state(name), attention=attention)
        shown = teacher.encoder(video, masked, taps=teacher.taps)
        shown = normalize(shown, dim=-1) if teacher.normalize else shown
        results[f"{name}_{suffix}_masked"] = shown
        results[f"{name}_{suffix}"] = shown if large else teacher(video).middle
    if not large:
        assert sorted(case.json["vmae_return_index"]) == list(teacher.taps)
        assert case.json["vmae_pos_embed_is_parameter"] == ("pos_embed" in case.state(name))
        results["videomae_pos_embed"] = teacher.encoder.pos_embed
    return results


CHECKS = {
    "internvl": _internvl,
    "iv2_teacher": _internvideo2,
    "videomae": _videomae,
    "videomae_fulltable": _videomae,
}

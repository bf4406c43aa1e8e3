"""Reference configurations and parameter names of the teachers, for the checks that contain one."""

from typing import Literal
from unittest.mock import patch

import torch
from torch import Tensor

from ivt2.models import internvideo2
from ivt2.models.internvideo2 import taps_from_end
from ivt2.models.internvl import InternVLTeacher
from ivt2.models.teacher import InternVideo2Teacher, VideoMAETeacher
from ivt2.models.videomae import VideoMAE
from tests.golden.internvideo2 import PUBLISHED, build_encoder, rename


def build_internvl(config: dict, state: dict[str, Tensor]) -> InternVLTeacher:
    """The teacher that looks at single frames."""
    # The recorded table of positions replaces the start of ours, which not every recorded width can hold.
    with patch.object(internvideo2, "sincos_3d", _zeros):
        encoder = build_encoder({"mlp_ratio": 4} | config | {"num_frames": 1, "tubelet_size": 1})
    teacher = InternVLTeacher(encoder, taps=clip_taps(config), normalize=config.get("clip_norm_type", "l2") == "l2")
    teacher.encoder.load_state_dict({rename(name): value for name, value in state.items()})
    return teacher


def _zeros(dim: int, num_frames: int, grid_size: int) -> Tensor:
    return torch.zeros(1 + num_frames * grid_size**2, dim)


def build_internvideo2(config: dict, state: dict[str, Tensor]) -> InternVideo2Teacher:
    """The teacher of distillation."""
    encoder = build_encoder(config)
    teacher = InternVideo2Teacher(encoder, taps=clip_taps(config), normalize=config.get("clip_norm_type", "l2") == "l2")
    teacher.encoder.load_state_dict({rename(name): value for name, value in state.items()})
    return teacher


def build_videomae(
    config: dict, state: dict[str, Tensor], *, attention: Literal["fixed", "literal"] = "fixed"
) -> VideoMAETeacher:
    """VideoMAE; a recorded position table takes the place of ours, for it was disturbed like every parameter."""
    encoder = VideoMAE(
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        num_frames=config.get("all_frames", 16),
        tubelet_size=config.get("tubelet_size", 2),
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        mlp_ratio=float(config["mlp_ratio"]),
        qv_bias=config.get("qkv_bias", False),
        layer_scale_init=float(config["init_values"]) if config.get("init_values") else None,
        attention=attention,
    )
    state = dict(state)
    if (table := state.pop("pos_embed", None)) is not None:
        encoder.pos_embed.copy_(table)
    encoder.load_state_dict({
        name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): value for name, value in state.items()
    })
    interval = float(config.get("mae_return_interval", 1))
    taps = taps_from_end(config["depth"], config.get("mae_return_layer", 1), interval)
    return VideoMAETeacher(encoder, taps=taps, normalize=config.get("mae_norm_type", "l2") == "l2")


def clip_taps(config: dict) -> list[int]:
    """Blocks whose streams the teacher returns."""
    if config.get("clip_return_index"):
        return sorted(config["clip_return_index"])
    config = PUBLISHED | config
    return taps_from_end(config["depth"], config["clip_return_layer"], float(config.get("clip_return_interval", 1)))

"""Published sizes: exact numbers of parameters, and that the configuration files say the same."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from ivt2.models import published
from ivt2.models.bert import Bert
from ivt2.models.internvideo2 import InternVideo2

CONF = Path(__file__).parents[2] / "conf"

COUNTS = [
    ("video_encoder", {"size": "s14", "num_frames": 8}, 23_043_840),
    ("video_encoder", {"size": "b14", "num_frames": 8}, 89_438_976),
    ("video_encoder", {"size": "l14", "num_frames": 8}, 308_929_280),
    ("video_encoder", {"size": "1b", "num_frames": 8}, 1_020_708_608),
    ("video_encoder", {"size": "6b", "num_frames": 8}, 5_941_735_168),
    ("stage1_student", {"size": "1b"}, 1_070_042_752),
    ("stage1_student", {"size": "6b"}, 6_075_947_392),
    ("distilled_student", {"size": "s14"}, 29_169_792),
    ("distilled_student", {"size": "b14"}, 102_252_288),
    ("distilled_student", {"size": "l14"}, 327_183_872),
    ("stage2_visual", {}, 1_410_146_493),
    ("stage2_visual", {"masked_lm": False}, 1_409_064_323),
    # Of the 6B text encoder: 768-wide tokens are fused.
    ("bert_large", {"encoder_width": 768, "masked_lm": True}, 353_555_258),
    ("bert_large", {"encoder_width": 768, "masked_lm": False}, 352_473_088),
]
"""Source: reference single_modality and multi_modality, counted on the reference's own networks."""


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("builder", "options", "count"), COUNTS, ids=[f"{name}-{'-'.join(map(str, o.values()))}" for name, o, _ in COUNTS]
)
def test_numbers_of_parameters(builder, options, count):
    with torch.device("meta"):
        network = getattr(published, builder)(**options)
    assert num_parameters(network) == count
    assert all(tensor.is_meta for tensor in network.state_dict().values()), "something was allocated"


def read(group: str, choice: str) -> dict:
    values = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())
    del values["_target_"]
    return values


@pytest.mark.parametrize("size", published.SIZES)
def test_configurations_say_the_same_of_the_video_encoder(size):
    said = read("vision_encoder", size)
    widths = asdict(published.SIZES[size])
    assert {name: said[name] for name in widths} == widths
    with torch.device("meta"):
        built = published.video_encoder(
            size,
            num_frames=said["num_frames"],
            image_size=said["image_size"],
            separate_image_position=said.get("separate_image_position", False),
        )
        configured = InternVideo2(**said)
    assert shapes(built) == shapes(configured)


def test_configuration_says_the_same_of_bert_large():
    said = read("text_encoder", "bert_large") | {"encoder_width": 1408}
    with torch.device("meta"):
        built, configured = published.bert_large(), Bert(**said)
    assert shapes(built) == shapes(configured)
    assert built.fusion_layer == configured.fusion_layer
    assert built.layers[0].self_attention.num_heads == configured.layers[0].self_attention.num_heads


def shapes(network: nn.Module) -> dict:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}

"""Published sizes: exact numbers of parameters, and that the configuration files say the same."""

from dataclasses import asdict
from inspect import isfunction
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
    ("video_classifier", {"size": "s14", "num_classes": 400, "num_frames": 8}, 23_352_976),
    ("video_classifier", {"size": "b14", "num_classes": 400, "num_frames": 8}, 89_748_112),
    ("video_classifier", {"size": "l14", "num_classes": 400, "num_frames": 8}, 309_238_416),
    ("video_classifier", {"size": "1b", "num_classes": 400, "num_frames": 8}, 1_021_017_744),
    ("video_classifier", {"size": "1b", "num_classes": 710, "num_frames": 8}, 1_021_256_134),
    ("video_classifier", {"size": "1b", "num_classes": 710, "num_frames": 16}, 1_024_139_718),
    ("video_classifier", {"size": "1b", "num_classes": 400, "num_frames": 8, "position": "separable"}, 1_018_505_872),
    ("video_classifier", {"size": "6b", "num_classes": 400, "num_frames": 8}, 5_942_044_304),
    ("video_classifier", {"size": "1b", "num_classes": 174, "num_frames": 16, "extra_mlp": True}, 1_028_451_502),
    ("video_classifier", {"size": "6b", "num_classes": 174, "num_frames": 16, "extra_mlp": True}, 5_953_148_078),
    ("stage1_student", {"size": "1b"}, 1_070_042_752),
    ("stage1_student", {"size": "6b"}, 6_075_947_392),
    ("distilled_student", {"size": "s14"}, 29_169_792),
    ("distilled_student", {"size": "b14"}, 102_252_288),
    ("distilled_student", {"size": "l14"}, 327_183_872),
    ("internvl_c", {}, 5_936_000_768),
    ("videomae_v2_g", {}, 1_011_610_752),
    ("stage2_visual", {}, 1_410_146_493),
    ("stage2_visual", {"masked_lm": False}, 1_409_064_323),
    ("stage2_audio_visual", {}, 6_453_900_079),
    ("stage2_audio_visual", {"audio": False, "masked_lm": False}, 6_360_140_931),
    ("stage2_audio_visual", {"size": "1b"}, 1_497_089_071),
    ("beats", {}, 90_311_792),
    ("bert_large", {"encoder_width": 768}, 353_555_258),
    ("bert_large", {"encoder_width": 1408}, 360_108_858),
    ("bert_large", {"encoder_width": 1408, "masked_lm": False}, 359_026_688),
    ("clip_small", {"size": "s14"}, 86_867_201),
    ("clip_small", {"size": "b14"}, 153_262_337),
    ("clip_small", {"size": "l14"}, 372_752_641),
    ("clip_large", {"size": "1b"}, 7_713_126_145),
    ("clip_large", {"size": "1b", "lora": False}, 7_704_737_537),
    ("clip_large", {"size": "6b"}, 12_634_152_705),
    ("clip_large", {"size": "6b", "lora": False}, 12_625_764_097),
    ("mobileclip_b", {}, 63_428_096),
    ("llama_7b", {}, 6_692_417_536),
    ("llama_7b", {"lora": False}, 6_684_028_928),
]
"""Source: the reference's own networks, single_modality and multi_modality, counted."""

UNUSED_NORM = 2 * 768
"""The reference counts a norm of the pooled vector where the concatenating head does not read that vector."""

CONCAT_COUNTS = {
    # (per frame, with the pooled vector): with a trained norm, and with one without weight and bias
    (False, False): (1_024_086_702 - UNUSED_NORM, 1_024_083_886 - UNUSED_NORM),
    (False, True): (1_024_220_334, 1_024_217_518),
    (True, False): (1_026_949_294 - UNUSED_NORM, 1_026_947_758 - UNUSED_NORM),
    (True, True): (1_027_082_926, 1_027_081_390),
}
"""Of the 1B encoder with 16 frames and 174 classes; source as above."""


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


@pytest.mark.parametrize("merge_norm", ["layer", "batch", "plain_batch"])
@pytest.mark.parametrize(("per_frame", "with_pooled"), CONCAT_COUNTS)
def test_numbers_of_parameters_of_concatenating_heads(per_frame, with_pooled, merge_norm):
    options = {"per_frame": per_frame, "with_pooled": with_pooled, "merge_norm": merge_norm}
    with torch.device("meta"):
        network = published.concat_classifier("1b", num_classes=174, num_frames=16, **options)
    assert num_parameters(network) == CONCAT_COUNTS[per_frame, with_pooled][merge_norm == "plain_batch"]


def test_every_builder_is_counted():
    builders = {
        name
        for name, value in vars(published).items()
        if isfunction(value) and value.__module__ == published.__name__ and not name.startswith("_")
    }
    assert builders == {name for name, *_ in COUNTS} | {"concat_classifier"}


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

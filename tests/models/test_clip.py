"""The CLIP models: names, and what each of their methods reads."""

import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from ivt2.models.clip import ClipModel
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.llama_text import LlamaText
from ivt2.models.mobileclip import MobileClipText

VISION = {
    "image_size": 8, "patch_size": 4, "num_frames": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0,
    "layer_scale_init": 0.1, "pool_num_heads": 2, "pooled_dim": 12,
}  # fmt: skip
IDS = torch.tensor([[25, 3, 4, 29, 0, 0], [25, 8, 9, 10, 11, 29], [25, 29, 0, 0, 0, 0]])


def small(text_dim=6, vision_align=6, **options):
    torch.manual_seed(0)
    text = MobileClipText(vocab_size=30, context_length=6, embed_dim=8, depth=2, num_heads=2, projection_dim=text_dim)
    return ClipModel(InternVideo2(**VISION), text, vision_align=vision_align, **options).eval()


def large():
    torch.manual_seed(0)
    text = LlamaText(vocab_size=30, embed_dim=8, depth=2, num_heads=2, mlp_dim=16, projection_dim=12, lora_rank=2)
    return ClipModel(InternVideo2(**VISION), text).eval()


def clips(num_frames=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, num_frames, 3, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("build", [small, large])
@pytest.mark.parametrize("num_frames", [4, 1])
def test_features_are_unit_vectors_of_one_space(build, num_frames):
    model, video = build(), clips(num_frames)
    width = 6 if build is small else 12
    features = model.encode_video(video), model.encode_text(IDS)
    for feature in features:
        assert feature.shape == (3, width)
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(3))
    pooled = model.vision_encoder(video).pooled
    if build is small:
        norm, linear = model.vision_align
        pooled = nn.functional.layer_norm(pooled, (12,), norm.weight, norm.bias, 1e-5) @ linear.weight.T + linear.bias
    torch.testing.assert_close(features[0], pooled / pooled.norm(dim=1, keepdim=True))
    text = model.text_encoder(IDS)
    torch.testing.assert_close(features[1], text / text.norm(dim=1, keepdim=True))


def test_empty_batch_passes_through():
    model = small()
    assert model.encode_video(clips()[:0]).shape == model.encode_text(IDS[:0]).shape == (0, 6)


@pytest.mark.parametrize(("text_dim", "vision_align"), [(6, None), (6, 8)])
def test_features_of_unequal_width_are_refused(text_dim, vision_align):
    with pytest.raises(InputError, match="those of texts 6: set vision_align=6"):
        small(text_dim, vision_align)


@pytest.mark.parametrize(("value", "kept"), [(-1.0, 0.01), (0.005, 0.01), (0.2, 0.2), (9.0, 9.0)])
def test_temperature_stays_above_its_floor(value, kept):
    model = small()
    assert model.temperature.tolist() == pytest.approx([0.01])
    with torch.no_grad():
        model.temperature.fill_(value)
    model.clamp_temperature()
    assert model.temperature.item() == pytest.approx(kept)
    assert model.temperature.requires_grad


def test_other_temperatures():
    model = small(temperature=0.07, min_temperature=0.05)
    assert model.temperature.tolist() == pytest.approx([0.07])
    with torch.no_grad():
        model.temperature.fill_(0.02)
    model.clamp_temperature()
    assert model.temperature.item() == pytest.approx(0.05)
    model.read_temperature().mul(3).backward()
    assert model.temperature.grad.tolist() == [3]


@pytest.mark.parametrize("build", [small, large])
def test_names_without_decay_and_sharding_units(build):
    model = build()
    named = {name for name, _ in model.named_parameters()}
    listed = model.no_weight_decay()
    text = {name for name in named if name.startswith("text_encoder.")}
    assert listed == text | {"temperature", "vision_encoder.cls_token", "vision_encoder.pos_embed"}
    assert list(model.sharding_units()) == [*model.vision_encoder.blocks, *model.text_encoder.layers]
    assert all(callable(getattr(model, name)) for name in model.ENTRY_POINTS)


def test_names_of_the_parameters_are_fixed():
    """Key maps of released weights rely on them."""
    own = [
        "temperature",
        "vision_align.0.weight",
        "vision_align.0.bias",
        "vision_align.1.weight",
        "vision_align.1.bias",
    ]
    towers = ("vision_encoder.", "text_encoder.")
    assert sorted(name for name in small().state_dict() if not name.startswith(towers)) == sorted(own)
    assert [name for name in large().state_dict() if not name.startswith(towers)] == ["temperature"]

"""The stage-2 model: sizes, names, and what each of its methods reads."""

from collections import Counter

import pytest
import torch

from ivt2.errors import InputError
from ivt2.models.bert import Bert
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.stage2 import TEMPERATURE_RANGE, Stage2Model
from ivt2.nn.aligning import AligningDecoders
from ivt2.ops.masking import random_masking

VISION = {
    "image_size": 8, "patch_size": 4, "num_frames": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0,
    "layer_scale_init": 0.1, "pool_num_heads": 2, "pooled_dim": 12,
}  # fmt: skip
TEXT = {
    "vocab_size": 40, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16, "max_positions": 10, "fusion_layer": 1,
    "encoder_width": 16, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip

GOLDEN_KEYS = [
    "vision_encoder.cls_token",
    "vision_encoder.pos_embed",
    "vision_encoder.patch_embed.proj.weight",
    "vision_encoder.patch_embed.proj.bias",
    "text_encoder.embedding.word.weight",
    "text_encoder.embedding.position.weight",
    "text_encoder.embedding.token_type.weight",
    "text_encoder.embedding.norm.weight",
    "text_encoder.embedding.norm.bias",
    "text_encoder.masked_lm_head.bias",
    "text_encoder.masked_lm_head.dense.weight",
    "text_encoder.masked_lm_head.dense.bias",
    "text_encoder.masked_lm_head.norm.weight",
    "text_encoder.masked_lm_head.norm.bias",
    "vision_proj.weight",
    "vision_proj.bias",
    "text_proj.weight",
    "text_proj.bias",
    "matching_head.weight",
    "matching_head.bias",
    "temperature",
]
"""All keys but those of the blocks and of the pooling."""

GOLDEN_COUNTS = {
    "vision_encoder.blocks": 2 * 13,
    "vision_encoder.clip_projector": 14,
    "text_encoder.layers": 16 + 26,
}
"""Keys of the blocks and of the pooling: names inside are fixed by the tests of the encoders."""


def make(*, fusion_dim=None, clip_decoders=False, **text):
    torch.manual_seed(0)
    decoders = (
        AligningDecoders(
            embed_dim=16, pooled_dim=12, num_layers=2, teacher_dim=10, final_dim=7, num_frames=2, grid_size=2
        )
        if clip_decoders
        else None
    )
    text = TEXT | ({} if fusion_dim is None else {"encoder_width": fusion_dim}) | text
    vision = InternVideo2(**VISION)
    return Stage2Model(vision, Bert(**text), contrastive_dim=6, fusion_dim=fusion_dim, clip_decoders=decoders).eval()


def inputs(num=3):
    generator = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (num, 2, 3, 8, 8), dtype=torch.uint8, generator=generator)
    input_ids = torch.randint(5, 40, (num, 7), generator=generator)
    valid = torch.arange(7) < torch.tensor([7, 4, 5])[:num, None]
    return video, input_ids, valid


@pytest.mark.parametrize("masked", [False, True])
def test_shapes(masked):
    model = make()
    video, input_ids, valid = inputs()
    mask = random_masking(torch.rand(3, 8), 0.5) if masked else None
    encoded, text = model.encode_video(video, mask), model.encode_text(input_ids, valid)
    assert encoded.tokens.shape == (3, 5 if masked else 9, 16)
    assert text.tokens.shape == (3, 7, 8)
    assert torch.equal(text.pooled, text.tokens[:, 0])
    for feature in (model.embed_video(encoded), model.embed_text(text)):
        assert feature.shape == (3, 6)
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(3))
    assert model.match(text, encoded.tokens).shape == (3, 2)
    selected = torch.zeros(3, 7, dtype=torch.bool)
    selected[0, 2] = selected[1, 1] = selected[1, 3] = True
    assert model.predict_tokens(input_ids, valid, encoded.tokens, selected).shape == (3, 40)


def test_predicted_words_are_the_selected_ones_in_order():
    model = make()
    video, input_ids, valid = inputs()
    tokens = model.encode_video(video).tokens
    everywhere = model.predict_tokens(input_ids, valid, tokens, torch.ones(3, 7, dtype=torch.bool)).view(3, 7, 40)
    selected = torch.tensor([[0, 1, 0, 0, 0, 0, 1], [0] * 7, [1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    found = model.predict_tokens(input_ids, valid, tokens, selected)
    torch.testing.assert_close(found, torch.stack([everywhere[0, 1], everywhere[0, 6], everywhere[2, 0]]))


def test_pairs_may_share_clips():
    model = make()
    video, input_ids, valid = inputs()
    tokens, text = model.encode_video(video).tokens, model.encode_text(input_ids, valid)
    rows = torch.tensor([1, 0, 1])
    torch.testing.assert_close(model.match(text, tokens[:2], rows), model.match(text, tokens[rows]))
    assert not torch.allclose(model.match(text, tokens[:2], rows), model.match(text, tokens[[0, 1, 1]]))


def test_matching_reads_the_clip_and_valid_words_alone():
    model = make()
    video, input_ids, valid = inputs()
    tokens = model.encode_video(video).tokens
    logits = model.match(model.encode_text(input_ids, valid), tokens)
    other_padding = model.match(model.encode_text(torch.where(valid, input_ids, 7), valid), tokens)
    torch.testing.assert_close(other_padding, logits)
    other_clip = model.match(model.encode_text(input_ids, valid), tokens.roll(1, 0))
    assert (other_clip - logits).abs().amin() > 1e-5


def test_empty_batch_passes_through():
    model = make()
    video, input_ids, valid = (x[:0] for x in inputs())
    encoded = model.encode_video(video, torch.zeros(0, 8, dtype=torch.bool))
    text = model.encode_text(input_ids, valid)
    assert model.embed_video(encoded).shape == model.embed_text(text).shape == (0, 6)
    assert model.match(text, encoded.tokens).shape == (0, 2)
    assert model.predict_tokens(input_ids, valid, encoded.tokens, valid).shape == (0, 40)


@pytest.mark.parametrize(("value", "kept"), [(-1.0, 0.001), (0.0, 0.001), (0.2, 0.2), (9.0, 0.5)])
def test_temperature_stays_in_range(value, kept):
    model = make()
    with torch.no_grad():
        model.temperature.fill_(value)
    model.clamp_temperature()
    assert TEMPERATURE_RANGE == (0.001, 0.5)
    assert model.temperature.item() == pytest.approx(kept)
    assert model.temperature.requires_grad


def test_read_temperature_carries_the_gradient():
    model = make()
    model.read_temperature().mul(3).backward()
    assert model.temperature.grad.tolist() == [3]
    assert model.read_temperature().data_ptr() != model.temperature.data_ptr()


def test_names_of_the_parameters_are_fixed():
    """Checkpoints and key maps of released weights rely on them."""
    keys = list(make().state_dict())
    counts = Counter(prefix for key in keys for prefix in GOLDEN_COUNTS if key.startswith(f"{prefix}."))
    assert counts == GOLDEN_COUNTS
    assert sorted(key for key in keys if not key.startswith(tuple(GOLDEN_COUNTS))) == sorted(GOLDEN_KEYS)


def test_optional_parts_add_their_names():
    keys = make().state_dict().keys()
    added = make(fusion_dim=20, clip_decoders=True).state_dict().keys() - keys
    projection = {f"vision_token_proj.{part}.{kind}" for part in (0, 1) for kind in ("weight", "bias")}
    assert projection <= added
    assert {name for name in added if not name.startswith("clip_decoders.")} == projection
    assert any(name.startswith("clip_decoders.") for name in added)
    model = make(clip_decoders=True)
    assert {name for name in added if "pos_embed" in name} <= model.no_weight_decay()


@pytest.mark.parametrize("options", [{}, {"position": "separable"}, {"separate_image_position": True}])
def test_parameters_without_decay_exist(options):
    model = Stage2Model(InternVideo2(**VISION | options), Bert(**TEXT))
    named = {name for name, _ in model.named_parameters()}
    listed = model.no_weight_decay()
    assert listed <= named
    assert {"temperature", "vision_encoder.cls_token"} <= listed
    tables = {name for name in named if name.startswith("vision_encoder.") and "pos_embed" in name}
    assert tables
    assert tables <= listed


def test_visual_tokens_are_brought_to_the_width_of_the_fusion_once():
    model, (video, input_ids, valid) = make(fusion_dim=20), inputs()
    raw, encoded = model.vision_encoder(video), model.encode_video(video)
    linear, norm = model.vision_token_proj
    projected = raw.tokens @ linear.weight.T + linear.bias
    expected = (projected - projected.mean(-1, keepdim=True)) / (
        projected.var(-1, correction=0, keepdim=True) + 1e-5
    ) ** 0.5
    torch.testing.assert_close(encoded.tokens, expected)
    assert norm.eps == 1e-5
    assert torch.equal(encoded.pooled, raw.pooled)
    text = model.encode_text(input_ids, valid)
    fused = model.fuse(text, model.project_tokens(expected))
    torch.testing.assert_close(model.match(text, encoded.tokens), model.matching_head(fused[:, 0]))
    words = model.predict_tokens(input_ids, valid, encoded.tokens, valid)
    torch.testing.assert_close(words, model.text_encoder.predict_tokens(fused[valid]))


def test_widths_of_fusion_must_agree():
    with pytest.raises(InputError, match="encoder_width=16 but visual tokens are 20 wide"):
        make(fusion_dim=20, encoder_width=16)


@pytest.mark.parametrize("fusion_dim", [None, 20])
def test_segments_interleave_and_are_averaged(fusion_dim):
    model, (video, *_) = make(fusion_dim=fusion_dim), inputs(4)
    long = torch.stack([video[:2, 0], video[2:, 0], video[:2, 1], video[2:, 1]], dim=1)
    encoded = model.encode_segments(long, 2)
    first, second = model.encode_video(video[:2]), model.encode_video(video[2:])
    torch.testing.assert_close(encoded.tokens, (first.tokens + second.tokens) / 2)
    torch.testing.assert_close(encoded.pooled, (first.pooled + second.pooled) / 2)
    assert encoded.intermediates.shape == (0, *encoded.tokens.shape)
    torch.testing.assert_close(model.encode_segments(video, 1).tokens, model.encode_video(video).tokens)
    with pytest.raises(InputError, match="4 frames do not make 3 segments"):
        model.encode_segments(long, 3)


@pytest.mark.parametrize("num_frames", [1, 2])
def test_alignment_decodes_the_tapped_blocks_of_what_was_visible(num_frames):
    model, video = make(clip_decoders=True, fusion_dim=20), inputs()[0][:, :num_frames]
    masked = random_masking(torch.rand(3, 4 * num_frames, generator=torch.Generator().manual_seed(3)), 0.5)
    encoded = model.encode_video(video, masked, taps=[0, 1])
    image = num_frames == 1
    aligned = model.align(encoded, masked, image=image)
    raw = model.vision_encoder(video, masked, [0, 1])
    expected = model.clip_decoders(raw.intermediates, raw.pooled, masked=masked, image=image)
    assert aligned.middle.shape == (2, 3, 1 + 2 * num_frames, 10)
    torch.testing.assert_close(aligned.middle, expected.middle)
    torch.testing.assert_close(aligned.final, expected.final)
    with pytest.raises(RuntimeError, match="clip_decoders"):
        make().align(encoded, masked)


def test_sharding_units_are_the_blocks():
    model = make()
    units = list(model.sharding_units())
    assert units == [*model.vision_encoder.blocks, *model.text_encoder.layers]
    assert all(callable(getattr(model, name)) for name in model.ENTRY_POINTS)


@pytest.mark.parametrize("head", [True, False])
def test_masked_lm_head_is_the_text_encoders_choice(head):
    model = make(masked_lm=head)
    assert any("masked_lm_head" in key for key in model.state_dict()) == head

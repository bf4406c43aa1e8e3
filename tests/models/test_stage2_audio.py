"""The stage-2 model with audio: what each method reads, in which order, and which parts exist."""

import pytest
import torch

from ivt2.errors import InputError
from ivt2.models.beats import Beats
from ivt2.models.bert import Bert
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.stage2 import Stage2Model
from ivt2.models.stage2_audio import Stage2AudioVisualModel, join_tokens

VISION = {
    "image_size": 8, "patch_size": 4, "num_frames": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0,
    "layer_scale_init": 0.1, "pool_num_heads": 2, "pooled_dim": 12,
}  # fmt: skip
TEXT = {
    "vocab_size": 40, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16, "max_positions": 10, "fusion_layer": 1,
    "encoder_width": 20, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
AUDIO = {
    "patch_size": 4, "patch_dim": 10, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_dim": 32, "position_kernel": 4,
    "position_groups": 2, "num_buckets": 8, "max_distance": 16,
}  # fmt: skip
OPTIONAL = {
    "audio_visual_fusion": "audio_visual_fusion",
    "audio_matching": "audio_matching_head",
    "audio_visual_matching": "audio_visual_matching_head",
}


def make(**options):
    torch.manual_seed(0)
    parts = InternVideo2(**VISION), Bert(**TEXT), Beats(**AUDIO)
    defaults = {"contrastive_dim": 6, "fusion_dim": 20, "audio_matching": True}
    model = Stage2AudioVisualModel(*parts, **defaults | options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos_embed" not in name:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (3, 2, 3, 8, 8), dtype=torch.uint8, generator=generator)
    fbank = torch.randn(3, 13, 8, generator=generator)
    input_ids = torch.randint(5, 40, (3, 7), generator=generator)
    return video, fbank, input_ids, torch.arange(7) < torch.tensor([7, 4, 5])[:, None]


def test_audio_is_pooled_before_it_is_projected(model, inputs):
    _, fbank, *_ = inputs
    audio, raw = model.encode_audio(fbank), model.audio_encoder(fbank).tokens
    assert audio.tokens.shape == (3, 3 * 2, 20)
    torch.testing.assert_close(audio.pooled, sum(raw.unbind(1)) / 6)
    torch.testing.assert_close(audio.tokens, model.audio_token_proj(raw))
    feature = model.audio_proj(audio.pooled)
    torch.testing.assert_close(model.embed_audio(audio), feature / feature.norm(dim=1, keepdim=True))


def test_feature_of_both_comes_from_projections_of_any_length(model, inputs):
    video, fbank, *_ = inputs
    encoded, audio = model.encode_video(video), model.encode_audio(fbank)
    weight, bias = model.audio_visual_fusion.weight, model.audio_visual_fusion.bias
    joined = (
        model.audio_proj(audio.pooled) @ weight[:, :6].T + model.vision_proj(encoded.pooled) @ weight[:, 6:].T + bias
    )
    expected = joined / joined.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.embed_audio_visual(audio, encoded), expected)


def test_captions_look_at_audio_or_at_audio_then_vision(model, inputs):
    video, fbank, input_ids, valid = inputs
    text, audio, encoded = model.encode_text(input_ids, valid), model.encode_audio(fbank), model.encode_video(video)
    heard = model.fuse(text, model.project_tokens(audio.tokens))[:, 0]
    torch.testing.assert_close(model.match_audio(text, audio.tokens), model.audio_matching_head(heard))
    both = join_tokens(audio.tokens, encoded.tokens)
    assert torch.equal(both[:, :6], audio.tokens)
    assert torch.equal(both[:, 6:], encoded.tokens)
    perceived = model.fuse(text, model.project_tokens(both))[:, 0]
    expected = model.audio_visual_matching_head(perceived)
    torch.testing.assert_close(model.match_audio_visual(text, audio.tokens, encoded.tokens), expected)
    rows = torch.tensor([2, 2, 0])
    some = model.match_audio(text, audio.tokens[rows])
    torch.testing.assert_close(model.match_audio(text, audio.tokens, rows), some)
    some = model.match_audio_visual(text, audio.tokens[rows], encoded.tokens[rows])
    torch.testing.assert_close(model.match_audio_visual(text, audio.tokens, encoded.tokens, rows), some)
    assert model.predict_tokens(input_ids, valid, both, valid).shape == (int(valid.sum()), 40)


def test_the_visual_half_is_the_visual_model(model, inputs):
    video, _, input_ids, valid = inputs
    visual = Stage2Model(InternVideo2(**VISION), Bert(**TEXT), contrastive_dim=6, fusion_dim=20).eval()
    added = model.state_dict().keys() - visual.state_dict().keys()
    assert all(name.startswith("audio_") for name in added)
    visual.load_state_dict({name: value for name, value in model.state_dict().items() if name not in added})
    encoded, text = visual.encode_video(video), visual.encode_text(input_ids, valid)
    torch.testing.assert_close(model.encode_video(video).tokens, encoded.tokens)
    torch.testing.assert_close(model.match(text, encoded.tokens), visual.match(text, encoded.tokens))


@pytest.mark.parametrize("option", OPTIONAL)
def test_optional_parts_exist_where_they_are_asked_for(model, inputs, option):
    video, fbank, input_ids, valid = inputs
    without = make(**{option: False})
    missing = model.state_dict().keys() - without.state_dict().keys()
    assert missing == {f"{OPTIONAL[option]}.weight", f"{OPTIONAL[option]}.bias"}
    text, audio, encoded = model.encode_text(input_ids, valid), model.encode_audio(fbank), model.encode_video(video)
    calls = {
        "audio_visual_fusion": lambda: without.embed_audio_visual(audio, encoded),
        "audio_matching": lambda: without.match_audio(text, audio.tokens),
        "audio_visual_matching": lambda: without.match_audio_visual(text, audio.tokens, encoded.tokens),
    }
    with pytest.raises(RuntimeError, match=f"{option}=True"):
        calls[option]()


def test_widths_of_fusion_must_agree():
    with pytest.raises(InputError, match="encoder_width=20 but visual tokens are 21 wide"):
        make(fusion_dim=21)


def test_engines_know_all_blocks_and_methods(model):
    units = list(model.sharding_units())
    encoders = (model.vision_encoder.blocks, model.text_encoder.layers, model.audio_encoder.layers)
    assert units == [layer for layers in encoders for layer in layers]
    assert all(callable(getattr(model, name)) for name in model.ENTRY_POINTS)
    prefixes = ("encode_", "embed_", "fuse", "match", "project_", "predict_", "score_")
    methods = {name for name in dir(model) if name.startswith(prefixes)}
    assert methods - {"matching_head", "encode_segments"} <= set(model.ENTRY_POINTS)


def test_empty_batch_passes_through(model, inputs):
    video, fbank, input_ids, valid = (each[:0] for each in inputs)
    text, audio, encoded = model.encode_text(input_ids, valid), model.encode_audio(fbank), model.encode_video(video)
    assert model.embed_audio_visual(audio, encoded).shape == (0, 6)
    assert model.match_audio_visual(text, audio.tokens, encoded.tokens).shape == (0, 2)

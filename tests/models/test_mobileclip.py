"""MobileCLIP's text encoder against torch's own transformer layers, which share no code with it."""

import itertools

import pytest
import torch
from torch import nn

from ivt2.batch import Vocabulary
from ivt2.errors import InputError
from ivt2.models.mobileclip import MobileClipText

TINY = {
    "vocab_size": 30, "context_length": 8, "embed_dim": 24, "depth": 3, "num_heads": [2, 4, 3],
    "mlp_ratio": [1.0, 2.5, 0.5], "projection_dim": 6,
}  # fmt: skip
WIDTHS = [32, 64, 16]
"""1.0, 2.5 and 0.5 times 24, rounded up to multiples of 16."""


def make(**changes):
    torch.manual_seed(0)
    model = MobileClipText(**TINY | changes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def texts():
    """Two texts whose end token, 29, stands at positions 7 and 4; padding is 0."""
    ids = torch.randint(1, 28, (2, 8), generator=torch.Generator().manual_seed(1))
    ids[0, 7] = ids[1, 4] = 29
    ids[1, 5:] = 0
    return ids


def judge(model, ids, valid=None):
    """All tokens by torch's pre-norm encoder layers."""
    tokens = model.embedding.weight[ids]
    if model.pos_embed is not None:
        tokens = tokens + model.pos_embed
    mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1]) if model.causal else None
    padding = None if valid is None else torch.zeros(valid.shape).masked_fill(~valid, -torch.inf)
    for layer, heads, width in zip(model.layers, TINY["num_heads"], WIDTHS, strict=True):
        theirs = nn.TransformerEncoderLayer(
            24, heads, width, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
        )
        state = layer.state_dict()
        pairs = {"in_proj_": "qkv.", "out_proj.": "proj."}
        renamed = {
            f"self_attn.{theirs}{kind}": state[f"attn.{ours}{kind}"]
            for (theirs, ours), kind in itertools.product(pairs.items(), ("weight", "bias"))
        }
        for ours, name in {"mlp.fc1": "linear1", "mlp.fc2": "linear2", "norm1": "norm1", "norm2": "norm2"}.items():
            renamed |= {f"{name}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
        theirs.load_state_dict(renamed)
        tokens = theirs(tokens, src_mask=mask, src_key_padding_mask=padding)
    return nn.functional.layer_norm(tokens, (24,), model.norm.weight, model.norm.bias)


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"position_table": False}], ids=str)
def test_equals_torch(options):
    model, ids = make(**options), texts()
    assert [layer.mlp.fc1.out_features for layer in model.layers] == WIDTHS
    expected = judge(model, ids)
    torch.testing.assert_close(model.encode_tokens(ids), expected)
    ends = torch.stack([expected[0, 7], expected[1, 4]])
    torch.testing.assert_close(model(ids), ends @ model.projection)


def test_padding_is_hidden_from_a_tower_that_looks_both_ways():
    model, ids = make(causal=False), texts()
    torch.testing.assert_close(model.encode_tokens(ids, ids != 0), judge(model, ids, ids != 0))
    assert not torch.allclose(model(ids, ids != 0)[1], model(ids)[1], atol=1e-3)


def test_padding_does_not_matter_to_a_causal_tower():
    model, ids = make(), texts()
    other = ids.clone()
    other[1, 5:] = 3
    torch.testing.assert_close(model(other), model(ids), atol=0, rtol=0)
    assert torch.equal(model(ids, ids != 0), model(ids))


def test_text_of_padding_alone_gives_numbers():
    assert make(causal=False)(torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("length", [1, 5, 11])
def test_position_table_is_resized_to_the_text(length):
    """Judge: torch's bilinear resize of the table as an image of one channel."""
    model = make()
    ids = torch.zeros(1, length, dtype=torch.long)
    table = nn.functional.interpolate(model.pos_embed[None], size=(length, 24), mode="bilinear")[0]
    torch.testing.assert_close(model.embed(ids), model.embedding.weight[ids] + table)


def test_layer_norm_computes_in_float32_whatever_its_input():
    x, norm = torch.randn(50, 24).bfloat16() * 9, nn.LayerNorm(24).bfloat16()
    nn.init.normal_(norm.weight)
    assert torch.equal(norm(x), nn.LayerNorm.forward(norm.float(), x.float()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    """Measured in bfloat16: 0.6 % of the greatest feature."""
    model, ids = make(), texts()
    expected = model(ids)
    out = model.to(dtype)(ids)
    assert out.dtype == dtype
    bound = 0.02 if dtype == torch.bfloat16 else 1e-6
    assert (out.float() - expected).abs().max() < bound * expected.abs().max()


def test_start_depends_on_the_seed_alone_and_survives_meta():
    with torch.device("meta"):
        model = MobileClipText(**TINY)
    model.to_empty(device="cpu")
    torch.manual_seed(3)
    model.reset_parameters()
    torch.manual_seed(3)
    other = MobileClipText(**TINY)
    torch.manual_seed(3)
    other.reset_parameters()
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert model(texts()).isfinite().all()


def test_a_text_can_be_read_off_at_its_last_token():
    """What it is with CLIP's ids, whose last token is the greatest, and with any others."""
    greatest, last, ids = make(), make(pool="last"), texts()
    torch.testing.assert_close(last(ids), greatest(ids))
    other = ids.masked_fill(ids == 29, 3)
    rows = torch.stack([last.encode_tokens(other)[0, 7], last.encode_tokens(other)[1, 4]])
    torch.testing.assert_close(last(other), rows @ last.projection)
    assert not torch.allclose(greatest(other), rows @ last.projection)


@pytest.mark.parametrize(
    ("pool", "changes", "message"),
    [
        ("argmax", {}, None),
        ("argmax", {"sep_id": 28}, r"end token is 28 of 30.*text_encoder\.pool=last"),
        ("last", {"sep_id": 28}, None),
        ("last", {"pad_id": 1}, "pads with 1, the text encoder takes 0"),
        ("last", {"size": 31}, r"31 entries but text_encoder\.vocab_size is 30"),
        ("argmax", {"size": 31, "sep_id": 30}, r"31 entries but text_encoder\.vocab_size is 30"),
    ],
)
def test_the_tokenizer_must_suit(pool, changes, message):
    vocabulary = Vocabulary(size=30, pad_id=0, unk_id=-1, cls_id=28, sep_id=29, mask_id=-1)._replace(**changes)
    if message is None:
        make(pool=pool).check_vocabulary(vocabulary)
    else:
        with pytest.raises(InputError, match=message):
            make(pool=pool).check_vocabulary(vocabulary)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": [2, 4]}, "num_heads has 2 numbers for depth=3"),
        ({"mlp_ratio": [1.0]}, "mlp_ratio has 1 numbers for depth=3"),
        ({"num_heads": 5}, "width 24 cannot be shared by 5 heads"),
    ],
)
def test_bad_sizes_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        MobileClipText(**TINY | changes)


@pytest.mark.parametrize("width", [24, 48, 49, 130, 512])
@pytest.mark.parametrize("ratio", [0.7, 1.0, 48 / 11, 3.3])
def test_hidden_width_is_a_multiple_of_16(width, ratio):
    with torch.device("meta"):
        text = MobileClipText(**TINY | {"embed_dim": width, "num_heads": 1, "mlp_ratio": ratio})
    hidden = text.layers[0].mlp.fc1.out_features
    assert hidden % 16 == 0
    assert 0 <= hidden - width * ratio < 16


def test_names_of_the_parameters_are_fixed():
    """Key maps of released weights rely on them."""
    layer = [f"{name}.{kind}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
             for kind in ("weight", "bias")]  # fmt: skip
    keys = list(make(depth=1, num_heads=2, mlp_ratio=2.0).state_dict())
    names = [*(f"layers.0.{name}" for name in layer), "norm.weight", "norm.bias"]
    assert sorted(keys) == sorted(["embedding.weight", "pos_embed", "projection", *names])
    assert "pos_embed" not in make(position_table=False).state_dict()


def test_wider_start():
    narrow, wide = MobileClipText(**TINY), MobileClipText(**TINY | {"init_std": 0.06})
    for model, std in ((narrow, 0.02), (wide, 0.06)):
        assert model.layers[0].mlp.fc1.weight.std().item() == pytest.approx(std, rel=0.2)


def test_nothing_decays():
    model = make()
    assert model.no_weight_decay() == {name for name, _ in model.named_parameters()}

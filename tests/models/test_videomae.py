"""VideoMAE's encoder: names, sizes, both attentions, the position table."""

import math

import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from ivt2.models.published import videomae_v2_g
from ivt2.models.videomae import LiteralAttention, QueryValueBiasAttention, VideoMAE
from ivt2.ops.pixels import normalize_pixels
from ivt2.ops.position import resize_position_table, sinusoid_interleaved

TINY = {
    "image_size": 8, "patch_size": 4, "num_frames": 4, "embed_dim": 12, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0,
}  # fmt: skip


def make(**changes):
    torch.manual_seed(0)
    model = VideoMAE(**TINY | changes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def clips(size=8, num_frames=4):
    return torch.randn(2, num_frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_forward_of_the_published_size_on_meta():
    with torch.device("meta"):
        features = videomae_v2_g()(torch.empty(1, 16, 3, 224, 224, dtype=torch.uint8), taps=(36, 37, 38, 39))
    assert features.shape == (4, 1, 2048, 1408)


def test_names_of_the_parameters_are_fixed():
    block = ["norm1.weight", "norm1.bias", "attn.q_bias", "attn.v_bias", "attn.qkv.weight", "attn.proj.weight",
             "attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight",
             "mlp.fc2.bias"]  # fmt: skip
    names = ["patch_embed.proj.weight", "patch_embed.proj.bias", *(f"blocks.0.{name}" for name in block)]
    assert list(make(depth=1).state_dict()) == [*names, "norm.weight", "norm.bias"]
    assert "blocks.0.ls1.gamma" in make(layer_scale_init=0.1).state_dict()
    assert "blocks.0.attn.q_bias" not in make(qv_bias=False).state_dict()


@pytest.mark.parametrize("bias", [True, False])
def test_fixed_attention_equals_torch(bias):
    torch.manual_seed(0)
    ours = QueryValueBiasAttention(12, 3, qkv_bias=bias)
    judge = nn.MultiheadAttention(12, 3, batch_first=True)
    judge.in_proj_weight.data = ours.qkv.weight.data
    if bias:
        nn.init.normal_(ours.q_bias)
        nn.init.normal_(ours.v_bias)
        judge.in_proj_bias.data = torch.cat([ours.q_bias, torch.zeros(12), ours.v_bias]).detach()
    judge.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), judge(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_literal_attention_equals_a_loop(backend):
    """Each token's heads attend to each other; row n of the result is cut from the list of all heads' outputs."""
    torch.manual_seed(0)
    tokens, heads, width = 5, 3, 4
    ours = LiteralAttention(heads * width, heads, backend=backend)
    nn.init.normal_(ours.q_bias)
    nn.init.normal_(ours.v_bias)
    x = torch.randn(2, tokens, heads * width)
    q, k, v = ours.qkv(x).detach().chunk(3, dim=-1)
    q, v = q + ours.q_bias, v + ours.v_bias
    rows = []
    for b in range(2):
        pieces = []
        for head in range(heads):
            for n in range(tokens):
                query, keys, values = q[b, n].view(heads, width)[head], k[b, n].view(heads, -1), v[b, n].view(heads, -1)
                powers = torch.stack([(query @ key / math.sqrt(width)).exp() for key in keys])
                pieces.append((powers / powers.sum()) @ values)
        rows.append(torch.stack([torch.cat(pieces[n * heads : (n + 1) * heads]) for n in range(tokens)]))
    torch.testing.assert_close(ours(x), ours.proj(torch.stack(rows)))


def test_literal_attention_refuses_a_bias():
    with pytest.raises(InputError, match="literal"):
        LiteralAttention(8, 2)(torch.randn(1, 3, 8), torch.zeros(1, 1, 3, 3))


@pytest.mark.parametrize("attention", ["fixed", "literal"])
def test_forward_is_the_equation(attention):
    """Pre-norm blocks with LayerNorm of epsilon 1e-6 and exact GELU; the last tapped stream is normalised."""
    model, video = make(attention=attention, layer_scale_init=0.5), clips()

    def layer_norm(x, norm):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias

    x = model.patch_embed(video) + model.pos_embed
    streams = []
    for block in model.blocks:
        x = x + block.ls1.gamma * block.attn(layer_norm(x, block.norm1))
        hidden = block.mlp.fc1(layer_norm(x, block.norm2))
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + block.ls2.gamma * block.mlp.fc2(hidden)
        streams.append(x)
    expected = torch.stack([streams[0], layer_norm(streams[2], model.norm)])
    torch.testing.assert_close(model(video, taps=(0, 2)), expected)


def test_fixed_and_literal_differ():
    fixed, literal, video = make(), make(attention="literal"), clips()
    assert not torch.allclose(fixed(video, taps=(2,)), literal(video, taps=(2,)), atol=1e-2)


def test_hidden_patches_do_not_enter_the_blocks():
    model, video = make(), clips()
    masked = torch.tensor([[True, False] * 4, [False, True] * 4])
    pixels = masked.view(2, 2, 1, 2, 2).repeat_interleave(2, 1).repeat_interleave(4, 3).repeat_interleave(4, 4)
    other = torch.where(pixels, torch.full_like(video, 9.0), video)
    features = model(video, masked, taps=(1,))
    assert features.shape == (1, 2, 4, 12)
    torch.testing.assert_close(model(other, masked, taps=(1,)), features)
    torch.testing.assert_close(model(video, torch.zeros_like(masked), taps=(1,)), model(video, taps=(1,)))


@pytest.mark.parametrize(("patch_size", "trained_grid"), [(14, 16), (16, 14), (4, 14)])
def test_table_is_made_for_the_trained_grid_and_resized(patch_size, trained_grid):
    model = make(image_size=3 * patch_size, patch_size=patch_size, num_frames=8)
    table = sinusoid_interleaved(12, 8 * trained_grid**2).unsqueeze(0)
    expected = resize_position_table(table, source_frames=8, num_frames=4, grid_size=3, num_prefix=0)
    assert torch.equal(model.pos_embed, expected)
    assert "pos_embed" not in model.state_dict()


def test_table_of_the_trained_grid_is_the_sinusoid_itself():
    model = make(image_size=28, patch_size=2, num_frames=16, depth=1)
    assert torch.equal(model.pos_embed[0], sinusoid_interleaved(12, 8 * 14**2))


def test_table_survives_the_meta_device():
    ready, video = make(), clips()
    with torch.device("meta"):
        assigned, emptied = VideoMAE(**TINY).eval(), VideoMAE(**TINY).eval()
    assigned.load_state_dict(ready.state_dict(), assign=True)
    assert torch.equal(assigned(video, taps=(2,)), ready(video, taps=(2,)))
    emptied.to_empty(device="cpu").reset_buffers()
    emptied.load_state_dict(ready.state_dict())
    assert torch.equal(emptied(video, taps=(2,)), ready(video, taps=(2,)))


def test_reset_starts_every_weight_anew():
    model = make()
    model.pos_embed.zero_()
    model.reset_parameters()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and not name.startswith("patch_embed"):
            assert not parameter.any(), name
    assert 0.015 < model.blocks[0].mlp.fc1.weight.std() < 0.025
    assert torch.equal(model.pos_embed, make().pos_embed)


def test_bytes_are_normalised():
    model, video = make(), torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(model(video, taps=(0,)), model(normalize_pixels(video), taps=(0,)))


@pytest.mark.parametrize(
    ("video", "taps", "message"),
    [
        (clips(num_frames=2), (0,), r"\[2, 3, 8, 8\].*takes \[4, 3, 8, 8\]"),
        (clips(size=4), (0,), r"takes \[4, 3, 8, 8\]"),
        (clips(), (), "taps"),
        (clips(), (1, 0), "taps"),
        (clips(), (3,), "taps"),
    ],
)
def test_wrong_input_is_refused(video, taps, message):
    with pytest.raises(InputError, match=message):
        make()(video, taps=taps)


@pytest.mark.parametrize("changes", [{"image_size": 10}, {"num_frames": 3}])
def test_wrong_sizes_are_refused(changes):
    with pytest.raises(InputError, match="is not a multiple of"):
        make(**changes)

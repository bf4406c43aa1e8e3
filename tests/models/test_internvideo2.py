"""The video encoder: equation, options, errors, engines."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from ivt2.errors import InputError
from ivt2.models.internvideo2 import IMAGENET_MEAN, IMAGENET_STD, InternVideo2, taps_from_end
from ivt2.models.published import video_encoder
from ivt2.nn.drop_path import DropPath
from ivt2.ops.masking import random_masking
from ivt2.ops.position import average_frames, sincos_1d, sincos_2d, sincos_3d

TINY = {
    "image_size": 8, "patch_size": 4, "num_frames": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0,
    "pool_num_heads": 2, "pooled_dim": 12,
}  # fmt: skip


def make(randomize=True, **changes):
    torch.manual_seed(0)
    model = InternVideo2(**TINY | changes).eval()
    if randomize:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def clips(num_frames=4, batch=2, size=8):
    return torch.randn(batch, num_frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_forward_of_the_published_size_on_meta():
    with torch.device("meta"):
        model = video_encoder("1b", num_frames=8)
        encoded = model(torch.empty(2, 8, 3, 224, 224, dtype=torch.uint8), taps=[38, 39])
    assert encoded.tokens.shape == (2, 2049, 1408)
    assert encoded.pooled.shape == (2, 768)
    assert encoded.intermediates.shape == (2, 2, 2049, 1408)
    assert model.num_patches_per_frame == 256
    assert model.num_patches(1) == 256


def test_names_of_the_parameters_are_fixed():
    """Key maps of released weights rely on them."""
    model = make(depth=1, separate_image_position=True)
    block = ["norm1.weight", "attn.qkv.weight", "attn.q_norm.weight", "attn.k_norm.weight", "attn.proj.weight",
             "attn.proj.bias", "ls1.gamma", "norm2.weight", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight",
             "mlp.fc2.bias", "ls2.gamma"]  # fmt: skip
    pool = [f"norm1_{letter}.{kind}" for letter in "qkv" for kind in ("weight", "bias")]
    pool += [f"cross_attn.{layer}.{kind}" for layer in ("q", "k", "v", "proj") for kind in ("weight", "bias")]
    names = ["cls_token", "pos_embed", "img_pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    names += [f"blocks.0.{name}" for name in block] + [f"clip_projector.{name}" for name in pool]
    assert list(model.state_dict()) == names


def test_forward_is_the_equation():
    model, video = make(), clips()
    encoded = model(video, taps=(0, 2))
    patches = model.patch_embed(video)
    tokens = torch.cat([model.cls_token.expand(2, -1, -1), patches], dim=1) + model.pos_embed
    streams = []
    for block in model.blocks:
        tokens = block(tokens)
        streams.append(tokens)
    torch.testing.assert_close(encoded.tokens, streams[2])
    torch.testing.assert_close(encoded.intermediates, torch.stack([streams[0], streams[2]]))
    torch.testing.assert_close(encoded.pooled, model.clip_projector(streams[2]))


def test_masked_patches_do_not_matter_and_the_others_keep_their_places():
    """Hidden pixels may hold anything; showing all patches is the forward without mask."""
    model, video = make(), clips()
    masked = random_masking(torch.rand(2, 16, generator=torch.Generator().manual_seed(2)), 0.5)
    encoded = model(video, masked, taps=(1,))
    assert encoded.tokens.shape == (2, 9, 32)
    assert encoded.intermediates.shape == (1, 2, 9, 32)
    pixels = masked.view(2, 4, 1, 2, 2).repeat_interleave(4, dim=3).repeat_interleave(4, dim=4)
    other = torch.where(pixels, torch.full_like(video, 100.0), video)
    torch.testing.assert_close(model(other, masked).tokens, encoded.tokens)

    start = torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(video)], 1) + model.pos_embed
    visible = torch.cat([torch.ones(2, 1, dtype=torch.bool), ~masked], dim=1)
    expected = model.blocks[0](start[visible].view(2, 9, 32))
    torch.testing.assert_close(model(video, masked, taps=(0,)).intermediates[0], expected)
    torch.testing.assert_close(model(video, torch.zeros_like(masked)).tokens, model(video).tokens)


def test_early_exit_stops_after_the_first_blocks():
    model, video = make(), clips()
    whole = model(video, taps=(0, 1, 2))
    early = model(video, taps=(0,), num_blocks=2)
    assert torch.equal(early.tokens, whole.intermediates[1])
    assert torch.equal(early.intermediates, whole.intermediates[:1])
    torch.testing.assert_close(early.pooled, model.clip_projector(whole.intermediates[1]))


def test_without_taps_there_are_no_intermediates():
    assert make()(clips()).intermediates.shape == (0, 2, 17, 32)


@pytest.mark.parametrize("separate", [True, False])
def test_image_gets_its_table_or_the_mean_over_frames(separate):
    model, image = make(separate_image_position=separate), clips(num_frames=1)
    table = model.img_pos_embed if separate else average_frames(model.pos_embed, 4)
    start = torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(image)], dim=1) + table
    torch.testing.assert_close(model(image, taps=(0,)).intermediates[0], model.blocks[0](start))


def test_separable_table_equals_the_joint_table_of_sums():
    separable, joint = make(position="separable"), make()
    state = separable.state_dict()
    space, time, cls = (state.pop(f"pos_embed_{name}") for name in ("spatial", "temporal", "cls"))
    state["pos_embed"] = torch.cat([cls, (time[:, :, None] + space[:, None]).flatten(1, 2)], dim=1)
    joint.load_state_dict(state)
    torch.testing.assert_close(separable(clips()).pooled, joint(clips()).pooled)


def test_image_has_no_place_in_time():
    """Of separable tables an image gets those for space and CLS: not the mean over time that a joint table gives."""
    model, image = make(position="separable"), clips(num_frames=1)
    table = torch.cat([model.pos_embed_cls, model.pos_embed_spatial], dim=1)
    start = torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(image)], dim=1) + table
    torch.testing.assert_close(model(image, taps=(0,)).intermediates[0], model.blocks[0](start))


def test_tubelets_halve_the_tokens():
    model = make(tubelet_size=2)
    assert model(clips()).tokens.shape == (2, 9, 32)
    assert model.num_patches(4) == 8
    assert model(clips(), torch.tensor([[True] * 4 + [False] * 4] * 2)).tokens.shape == (2, 5, 32)


def test_model_of_one_frame():
    model = make(num_frames=1)
    assert model.pos_embed.shape == (1, 5, 32)
    assert model(clips(1)).tokens.shape == (2, 5, 32)


def test_options_change_the_parameters_they_name():
    names = set(dict(make().named_parameters()))
    assert set(dict(make(qkv_bias=True).named_parameters())) - names == {f"blocks.{i}.attn.qkv.bias" for i in range(3)}
    missing = names - set(dict(make(qk_norm=False, layer_scale_init=None).named_parameters()))
    parts = ("attn.q_norm.weight", "attn.k_norm.weight", "ls1.gamma", "ls2.gamma")
    assert missing == {f"blocks.{i}.{part}" for i in range(3) for part in parts}


@pytest.mark.parametrize(
    "change", [{"gelu": "erf"}, {"qk_norm": False}, {"layer_scale_init": None}], ids=lambda change: next(iter(change))
)
def test_options_change_the_result(change):
    model, other = make(), make(**change)
    shared = {name: value for name, value in model.state_dict().items() if name in other.state_dict()}
    other.load_state_dict(shared)
    assert not torch.equal(model(clips()).pooled, other(clips()).pooled)


def test_layer_scale_multiplies_in_float32_unless_told_otherwise():
    wide, narrow = make(), make(layer_scale_fp32=False)
    assert torch.equal(wide(clips()).tokens, narrow(clips()).tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(wide(clips()).tokens, narrow(clips()).tokens)


def test_pixels_are_normalised_with_the_constants_of_the_encoder():
    model = make()
    pixels = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8)
    scaled = (pixels / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(model(pixels).pooled, model(scaled).pooled)
    other = make(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    torch.testing.assert_close(other(pixels).pooled, model(pixels / 127.5 - 1).pooled)


def test_start_of_the_weights():
    """Specification of stage 1, section 1.6."""
    model = make(randomize=False, embed_dim=256, depth=4, separate_image_position=True)
    for number, block in enumerate(model.blocks, start=1):
        depth_scale = (2 * number) ** 0.5
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.attn.proj.weight.std().item() == pytest.approx(0.02 / depth_scale, rel=0.05)
        assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.mlp.fc2.weight.std().item() == pytest.approx(0.02 / depth_scale, rel=0.05)
        assert block.attn.proj.bias.abs().sum() == 0
        torch.testing.assert_close(block.ls1.gamma, torch.full((256,), 1e-5))
    torch.testing.assert_close(model.pos_embed[0], sincos_3d(256, 4, 2))
    torch.testing.assert_close(model.img_pos_embed[0], sincos_3d(256, 1, 2))
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.clip_projector.cross_attn.q.bias.abs().sum() == 0
    assert model.patch_embed.proj.weight.abs().max().item() == pytest.approx(48**-0.5, rel=0.01)


def test_start_of_separable_tables():
    model = make(randomize=False, position="separable")
    torch.testing.assert_close(model.pos_embed_spatial[0], sincos_2d(32, 2))
    torch.testing.assert_close(model.pos_embed_temporal[0], sincos_1d(32, 4))
    assert model.pos_embed_cls.abs().sum() == 0


def test_model_from_meta_starts_like_any_other():
    torch.manual_seed(0)
    expected = InternVideo2(**TINY)
    with torch.device("meta"):
        model = InternVideo2(**TINY)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    torch.manual_seed(0)
    model.reset_parameters()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.std().item() == pytest.approx(dict(expected.named_parameters())[name].std().item(), rel=0.5)
    assert model(torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8)).pooled.isfinite().all()


def test_drop_path_rises_linearly():
    model = make(drop_path=0.3, depth=4)
    rates = [[part.rate for part in block.children() if isinstance(part, DropPath)] for block in model.blocks]
    assert rates == [[pytest.approx(0.1 * index)] * 2 for index in range(4)]
    assert make(drop_path=0.3, depth=1).blocks[0].drop_path1.rate == 0


def test_names_without_weight_decay():
    assert make().no_weight_decay() == {"cls_token", "pos_embed"}
    assert make(position="separable", separate_image_position=True).no_weight_decay() == {
        "cls_token", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_cls", "img_pos_embed"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 10}, "image_size=10 is not a multiple of patch_size=4"),
        ({"num_frames": 3, "tubelet_size": 2}, "num_frames=3 is not a multiple of tubelet_size=2"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"embed_dim": 40}, "width 40 cannot hold a 3-D position table"),
        ({"num_heads": 5}, "width 32 cannot be shared by 5 heads"),
        ({"pool_num_heads": 3}, "width 32 cannot be shared by 3 heads"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"separate_image_position": True, "tubelet_size": 2}, "separate_image_position"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        make(**change)


@pytest.mark.parametrize(
    ("video", "arguments", "message"),
    [
        (clips(size=12), {}, r"video frames are \[3, 12, 12\], the encoder takes \[3, 8, 8\]"),
        (clips()[:, :, :1], {}, r"video frames are \[1, 8, 8\]"),
        (clips(num_frames=3), {}, "clips have 3 frames, the encoder takes 4 or images"),
        (clips(num_frames=8), {}, "clips have 8 frames"),
        (clips(), {"taps": [3]}, r"taps=\[3\] must increase and lie in \[0, 3\)"),
        (clips(), {"taps": [1, 0]}, "must increase"),
        (clips(), {"taps": [-1]}, "must increase"),
        (clips(), {"taps": [2], "num_blocks": 2}, r"lie in \[0, 2\)"),
        (clips(), {"num_blocks": 4}, "num_blocks=4 is not possible: the encoder has 3 blocks"),
        (clips(), {"num_blocks": 0}, "num_blocks=0"),
    ],
)
def test_input_that_does_not_fit_is_refused(video, arguments, message):
    with pytest.raises(InputError, match=message):
        make()(video, **arguments)


def test_image_cannot_enter_a_model_of_tubelets():
    with pytest.raises(InputError, match="clips have 1 frames, the encoder takes 4:"):
        make(tubelet_size=2)(clips(num_frames=1))


def test_mask_of_another_length_is_refused():
    with pytest.raises((TypeError, RuntimeError)):
        make()(clips(), torch.zeros(3, 5, dtype=torch.bool))


@pytest.mark.parametrize("checkpoint_blocks", [2, 3])
def test_recomputed_activations_give_the_same_gradients(checkpoint_blocks):
    """In training mode, so that stochastic depth must draw the same again."""
    gradients, calls = [], []
    for count in (0, checkpoint_blocks):
        model = make(checkpoint_blocks=count, drop_path=0.5).train()
        counter = []
        for index, block in enumerate(model.blocks):
            block.register_forward_pre_hook(lambda *_, index=index, counter=counter: counter.append(index))
        torch.manual_seed(3)
        model(clips(batch=6), taps=(1,)).pooled.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        calls.append(sorted(counter))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
    assert calls == [[0, 1, 2], sorted([0, 1, 2, *range(checkpoint_blocks)])]


def test_bfloat16_and_autocast_stay_near_float32():
    model, video = make(randomize=False, layer_scale_init=0.3), clips()
    exact = model(video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(video)
    half = make(randomize=False, layer_scale_init=0.3)
    half.load_state_dict(model.state_dict())
    rounded = half.to(torch.bfloat16)(video)
    assert rounded.tokens.dtype == rounded.pooled.dtype == torch.bfloat16
    assert mixed.tokens.dtype == torch.float32
    for other in (mixed, rounded):
        torch.testing.assert_close(other.tokens.float(), exact.tokens, atol=5e-2, rtol=5e-2)


@pytest.fixture
def _bfloat16_by_default():
    """What Lightning's `bf16-true` sets around construction and steps."""
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_bfloat16_by_default")
def test_uint8_of_a_bfloat16_model_is_normalised_in_float32():
    model = make()
    assert model.pos_embed.dtype == torch.bfloat16
    video = torch.randint(0, 256, (1, 4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(each, dtype=torch.float32).view(3, 1, 1) for each in (model.mean, model.std))
    normalised = (video.to(torch.float32) / 255 - mean) / std
    torch.testing.assert_close(model.patch_embed(video), model.patch_embed(normalised), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("depth", "num_taps", "interval", "taps"),
    [
        (40, 6, 3.34, [23, 26, 29, 33, 36, 39]),
        (48, 6, 4.0, [27, 31, 35, 39, 43, 47]),
        (12, 6, 1.0, [6, 7, 8, 9, 10, 11]),
        (6, 6, 1.0, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_taps_are_counted_from_the_end(depth, num_taps, interval, taps):
    assert taps_from_end(depth, num_taps, interval) == taps


@pytest.mark.parametrize(
    ("depth", "num_taps", "interval", "message"),
    [(5, 6, 1.0, "6 taps"), (40, 6, 0.5, "interval=0.5"), (40, 0, 1.0, "num_taps=0")],
)
def test_taps_that_do_not_fit_are_refused(depth, num_taps, interval, message):
    with pytest.raises(InputError, match=message):
        taps_from_end(depth, num_taps, interval)


COMPILE = """
import torch
from ivt2.models.internvideo2 import InternVideo2

torch.set_num_threads(1)
torch.manual_seed(0)
model = InternVideo2(image_size=8, patch_size=4, num_frames=4, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.0,
                     pool_num_heads=2, pooled_dim=12, layer_scale_init=0.5, checkpoint_blocks=1)
video = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8)
compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
whole = compiled(video, taps=(0, 1))
torch.testing.assert_close(whole.pooled, model(video).pooled)
whole.pooled.sum().backward()
print("same", whole.intermediates.shape[0], model.cls_token.grad is not None)
"""

SHARD = """
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from ivt2.models.internvideo2 import InternVideo2

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()

def build():
    torch.manual_seed(0)
    return InternVideo2(image_size=8, patch_size=4, num_frames=4, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.0,
                        pool_num_heads=2, pooled_dim=12, layer_scale_init=0.5, checkpoint_blocks=1)

whole, sharded = build(), build()
mesh = init_device_mesh("cpu", (2,))
for block in sharded.blocks:
    fully_shard(block, mesh=mesh)
fully_shard(sharded, mesh=mesh)

video = torch.randn(4, 4, 3, 8, 8)
masked = torch.tensor([[True, False] * 8] * 4)
part = slice(2 * rank, 2 * rank + 2)
expected = whole(video, masked, taps=(0, 1))
encoded = sharded(video[part], masked[part], taps=(0, 1))
torch.testing.assert_close(encoded.pooled, expected.pooled[part])
torch.testing.assert_close(encoded.intermediates, expected.intermediates[:, part])
expected.pooled.square().mean().backward()
encoded.pooled.square().mean().backward()
for (name, one), two in zip(whole.named_parameters(), sharded.parameters(), strict=True):
    torch.testing.assert_close(two.grad.full_tensor(), one.grad, msg=name)
print("same on", rank)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    """In a process of its own: the shape checks that pytest switches on are not part of the graph."""
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "same 2 True", done.stderr


@pytest.mark.slow
@pytest.mark.dist
def test_sharded_over_two_processes_equals_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SHARD],
            env=shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        stdout, stderr = process.communicate(timeout=120)
        assert stdout.strip() == f"same on {rank}", stderr

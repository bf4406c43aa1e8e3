"""BEATs: sizes, a slow second reading of every option, padding, training options, errors."""

import copy
import itertools
import math

import pytest
import torch
from torch.nn import functional

from ivt2.errors import InputError
from ivt2.models.beats import Beats, EncodedAudio, relative_position_buckets, share_valid

TINY = {
    "patch_size": 4, "patch_dim": 6, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 20, "position_kernel": 4,
    "position_groups": 2, "num_buckets": 12, "max_distance": 7,
}  # fmt: skip


def make(randomize=True, **changes):
    torch.manual_seed(0)
    model = Beats(**TINY | changes).eval()
    if randomize:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return model


def pictures(num_frames=22, num_mels=8, batch=2):
    return torch.randn(batch, num_frames, num_mels, generator=torch.Generator().manual_seed(1))


def test_published_size_on_meta():
    with torch.device("meta"):
        model = Beats()
        narrow, wide = model(torch.empty(2, 998, 64)), model(torch.empty(2, 998, 128))
    assert sum(parameter.numel() for parameter in model.parameters()) == 90_311_792
    assert narrow.tokens.shape == (2, 248, 768)
    assert wide.tokens.shape == (2, 496, 768)
    assert narrow.valid is None
    assert (model.num_tokens(998, 64), model.num_tokens(998, 128)) == (248, 496)


def slow_bucket(distance, num_buckets, max_distance):
    half = num_buckets // 2
    exact = half // 2
    bucket = half if distance > 0 else 0
    distance = abs(distance)
    if distance < exact:
        return bucket + distance
    far = exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (half - exact))
    return bucket + min(far, half - 1)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 40), (12, 7), (320, 800), (30, 128)])
def test_buckets_against_the_slow_loop(num_buckets, max_distance):
    length = max_distance + 5
    buckets = relative_position_buckets(length, num_buckets, max_distance)
    # Each diagonal holds one distance.
    assert torch.equal(buckets[1:, 1:], buckets[:-1, :-1])
    behind = [slow_bucket(distance, num_buckets, max_distance) for distance in range(length)]
    before = [slow_bucket(-distance, num_buckets, max_distance) for distance in range(length)]
    assert buckets[0].tolist() == behind
    assert buckets[:, 0].tolist() == before


# The published constructor's options; the forward pass of each is written out below.
VARIANTS = [
    {},
    {"norm": "post"},
    {"norm": "pre"},
    {"relative_position": "plain"},
    {"relative_position": "none"},
    {"activation": "glu"},
    {"activation": "glu", "norm": "pre", "relative_position": "plain"},
    {"activation": "relu"},
    {"activation": "gelu_tanh"},
    {"activation": "tanh"},
    {"activation": "linear"},
    {"patch_bias": True},
    {"patch_dim": 16},
    {"position_kernel": 5},
    {"num_heads": 4, "depth": 3},
]


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights, name, x):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def slow_embedding(weights, picture, options):
    """Patches of one sound in time-major order, projected, plus the position code."""
    size = options["patch_size"]
    kernel = weights["patch_embedding.weight"].flatten(1)
    patches = [
        picture[row : row + size, column : column + size].flatten()
        for row in range(0, picture.shape[0] - size + 1, size)
        for column in range(0, picture.shape[1] - size + 1, size)
    ]
    x = torch.stack(patches) @ kernel.T + weights.get("patch_embedding.bias", torch.zeros(()))
    x = norm(weights, "layer_norm", x)
    if "post_extract_proj.weight" in weights:
        x = linear(weights, "post_extract_proj", x)
    direction = weights["pos_conv.parametrizations.weight.original1"]
    length = direction.square().sum(dim=(0, 1), keepdim=True).sqrt()
    taps = weights["pos_conv.parametrizations.weight.original0"] * direction / length
    width, span = x.shape[1] // options["position_groups"], options["position_kernel"]
    code = weights["pos_conv.bias"].repeat(len(x), 1)
    for place, channel, tap in itertools.product(range(len(x)), range(x.shape[1]), range(span)):
        source, group = place + tap - span // 2, channel // width * width
        if 0 <= source < len(x):
            code[place, channel] += taps[channel, :, tap] @ x[source, group : group + width]
    return x + functional.gelu(code)


def slow_bias(weights, layer, q, places, options):
    query, key, head = places
    if options["relative_position"] == "none":
        return 0
    bucket = slow_bucket(key - query, options["num_buckets"], options["max_distance"])
    bias = weights["relative_attention_bias.weight"][bucket, head]
    if options["relative_position"] == "plain":
        return bias
    gates = linear(weights, f"{layer}.self_attn.grep_linear", q)
    a, b = torch.sigmoid(gates[:4].sum()), torch.sigmoid(gates[4:].sum())
    return bias * (a * (b * weights[f"{layer}.self_attn.grep_a"][0, head, 0, 0] - 1) + 2)


def slow_attention(weights, layer, x, options):
    head_dim = x.shape[1] // options["num_heads"]
    q, k, v = (linear(weights, f"{layer}.self_attn.{name}_proj", x) for name in "qkv")
    mixed = torch.zeros_like(x)
    for head, query in itertools.product(range(options["num_heads"]), range(len(x))):
        part = slice(head * head_dim, (head + 1) * head_dim)
        scores = k[:, part] @ q[query, part] / head_dim**0.5
        for key in range(len(x)):
            scores[key] += slow_bias(weights, layer, q[query, part], (query, key, head), options)
        mixed[query, part] = scores.softmax(0) @ v[:, part]
    return linear(weights, f"{layer}.self_attn.out_proj", mixed)


def slow_feed_forward(weights, layer, x, options):
    if options["activation"] == "glu":
        both = linear(weights, f"{layer}.fc1.linear", x)
        u, w = both[:, : options["mlp_dim"]], both[:, options["mlp_dim"] :]
        hidden = u * w * torch.sigmoid(w)
    else:
        x = linear(weights, f"{layer}.fc1", x)
        hidden = {
            "gelu": x * 0.5 * (1 + torch.erf(x / 2**0.5)),
            "gelu_tanh": x * 0.5 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
            "relu": x.clamp(min=0),
            "tanh": (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
            "linear": x,
        }[options["activation"]]
    return linear(weights, f"{layer}.fc2", hidden)


def slow_beats(weights, picture, options):
    x = slow_embedding(weights, picture, options)
    alpha = (2 * options["depth"]) ** 0.25 if options["norm"] == "deep" else 1
    if options["norm"] != "pre":
        x = norm(weights, "encoder_norm", x)
    for layer in (f"layers.{index}" for index in range(options["depth"])):
        first, second = f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm"
        if options["norm"] == "pre":
            x = x + slow_attention(weights, layer, norm(weights, first, x), options)
            x = x + slow_feed_forward(weights, layer, norm(weights, second, x), options)
        else:
            x = norm(weights, first, alpha * x + slow_attention(weights, layer, x, options))
            x = norm(weights, second, alpha * x + slow_feed_forward(weights, layer, x, options))
    return norm(weights, "encoder_norm", x) if options["norm"] == "pre" else x


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_option_against_a_slow_second_reading(changes):
    options = {"norm": "deep", "relative_position": "gated", "activation": "gelu"} | TINY | changes
    model = make(**changes).double()
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    fbank = pictures().double()
    expected = torch.stack([slow_beats(weights, picture, options) for picture in fbank])
    torch.testing.assert_close(model(fbank).tokens, expected, atol=1e-10, rtol=1e-8)


def test_prediction_is_the_sigmoid_of_the_mean_of_valid_logits():
    model = make(num_classes=5)
    tokens = torch.randn(2, 4, 16)
    valid = torch.tensor([[True, True, False, False], [True] * 4])
    logits = tokens @ model.predictor.weight.T + model.predictor.bias
    everything = model.predict(EncodedAudio(tokens, None))
    torch.testing.assert_close(everything, logits.mean(dim=1).sigmoid())
    some = model.predict(EncodedAudio(tokens, valid))
    torch.testing.assert_close(some[0], logits[0, :2].mean(dim=0).sigmoid())
    torch.testing.assert_close(some[1], everything[1])
    with pytest.raises(RuntimeError, match="num_classes"):
        make().predict(EncodedAudio(tokens, None))


# 22 frames are 5 rows of 4 frames, and 2 frames left over; 8 bins are 2 columns.
def test_a_patch_is_padding_if_all_its_frames_are():
    valid = torch.ones(2, 22, dtype=torch.bool)
    valid[0, 9:] = False
    encoded = make()(pictures(), valid)
    assert encoded.valid.tolist() == [[True] * 6 + [False] * 4, [True] * 10]


def test_the_reference_shares_frames_out_over_tokens():
    valid = torch.ones(2, 22, dtype=torch.bool)
    valid[0, 9:] = False
    encoded = make(padding="reference")(pictures(), valid)
    assert encoded.valid.tolist() == [[True] * 5 + [False] * 5, [True] * 10]
    assert share_valid(valid, 10).tolist() == [
        [any(row[2 * index : 2 * index + 2]) for index in range(10)] for row in valid.tolist()
    ]
    with pytest.raises(InputError, match="3 entries cannot be cut into 4 shares"):
        share_valid(valid[:, :3], 4)


@pytest.mark.parametrize("relative_position", ["none", "plain", "gated"])
def test_padding_has_no_influence_on_valid_tokens(relative_position):
    model = make(relative_position=relative_position)
    fbank, other = pictures(), pictures()
    other[0, 12:] = 100.0
    valid = torch.ones(2, 22, dtype=torch.bool)
    valid[0, 12:] = False
    first, second = model(fbank, valid).tokens, model(other, valid).tokens
    torch.testing.assert_close(first[0, :6], second[0, :6])
    torch.testing.assert_close(first[1], model(fbank).tokens[1])
    assert not torch.allclose(first[0, :6], model(fbank).tokens[0, :6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sound_that_is_all_padding_yields_numbers(dtype, attention):
    model = make(attention=attention, num_classes=3).to(dtype)
    encoded = model(pictures().to(dtype), torch.zeros(2, 22, dtype=torch.bool))
    assert encoded.tokens.isfinite().all()
    assert model.predict(encoded).isfinite().all()


def test_weights_start_as_published():
    torch.manual_seed(0)
    model = Beats(depth=2)
    gain = 16**-0.25
    stds = {
        "layers.0.self_attn.q_proj.weight": (2 / (768 + 768)) ** 0.5,
        "layers.1.self_attn.k_proj.weight": (2 / (768 + 768)) ** 0.5,
        "layers.0.self_attn.v_proj.weight": gain * (2 / (768 + 768)) ** 0.5,
        "layers.0.self_attn.out_proj.weight": gain * (2 / (768 + 768)) ** 0.5,
        "layers.1.fc1.weight": gain * (2 / (768 + 3072)) ** 0.5,
        "layers.1.fc2.weight": gain * (2 / (768 + 3072)) ** 0.5,
        "layers.1.self_attn.grep_linear.weight": 0.02,
        "relative_attention_bias.weight": 0.02,
        "post_extract_proj.weight": (1 / (3 * 512)) ** 0.5,
    }
    for name, std in stds.items():
        assert model.state_dict()[name].std().item() == pytest.approx(std, rel=0.06), name
    assert model.pos_conv.weight.std().item() == pytest.approx((4 / (128 * 768)) ** 0.5, rel=0.02)
    assert not model.pos_conv.bias.any()
    assert not model.layers[0].fc1.bias.any()
    assert torch.equal(model.layers[1].self_attn.grep_a, torch.ones(1, 12, 1, 1))
    plain = Beats(depth=1, norm="post")
    assert plain.layers[0].fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("changes", [{}, {"activation": "glu", "num_classes": 3, "norm": "pre", "patch_dim": 16}])
def test_a_model_from_meta_starts_like_any_other(changes):
    expected = make(**changes)
    torch.manual_seed(0)
    expected.reset_parameters()
    with torch.device("meta"):
        model = Beats(**TINY | changes)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.detach().fill_(torch.nan)
    torch.manual_seed(0)
    model.reset_parameters()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert torch.equal(model.eval()(pictures()).tokens, expected(pictures()).tokens)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout", "input_dropout"])
def test_each_dropout_acts_in_training_alone(name):
    model = make(**{name: 0.5})
    expected = make()(pictures()).tokens
    torch.testing.assert_close(model(pictures()).tokens, expected)
    assert not torch.allclose(model.train()(pictures()).tokens, expected)


def test_predictor_dropout_acts_in_training_alone():
    model = make(num_classes=3, predictor_dropout=0.5)
    encoded = model(pictures())
    assert torch.equal(model.predict(encoded), make(num_classes=3).predict(encoded))
    assert not torch.allclose(model.train().predict(encoded), model.eval().predict(encoded))


def test_dropped_layers_pass_their_input_on_and_get_zero_gradients():
    model = make(layer_drop=1.0, norm="pre")
    full = model(pictures()).tokens
    model.train()
    without = copy.deepcopy(model)
    without.layers = torch.nn.ModuleList()
    tokens = model(pictures()).tokens
    assert torch.equal(tokens, without(pictures()).tokens)
    assert not torch.allclose(tokens, full)
    tokens.sum().backward()
    assert all(not parameter.grad.any() for parameter in model.layers.parameters())


def test_a_share_of_the_layers_is_dropped():
    model = make(layer_drop=0.25, depth=1).train()
    whole = make(depth=1)(pictures()).tokens
    kept = [torch.allclose(model(pictures()).tokens, whole) for _ in range(100)]
    assert 0.6 < sum(kept) / 100 < 0.9


def test_gradient_decay_scales_the_gradient_layer_by_layer():
    plain, decayed = make(), make(gradient_decay=0.6)
    outputs = [model(pictures()).tokens for model in (plain, decayed)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for name, power in (("layers.1.fc2.weight", 0), ("layers.0.fc2.weight", 1), ("post_extract_proj.weight", 2)):
        expected = 0.6**power * plain.get_parameter(name).grad
        torch.testing.assert_close(decayed.get_parameter(name).grad, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "width 16 cannot be shared by 3 heads"),
        ({"position_groups": 3}, "embed_dim=16 is not a multiple of position_groups=3"),
        ({"num_buckets": 3}, "num_buckets=3 is too few"),
        ({"num_buckets": 32, "max_distance": 8}, "max_distance=8 lies within the 8 distances"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_a_sound_without_a_whole_patch_is_refused():
    with pytest.raises(InputError, match="3 frames x 8 mel bins holds no patch of 4 x 4: pad it"):
        make()(pictures(num_frames=3))

"""One attention, several back ends: all against a loop in float64."""

import math
import sys
from itertools import product
from types import ModuleType

import pytest
import torch

from ivt2.errors import InputError
from ivt2.ops import attention as module
from ivt2.ops.attention import attention, attention_weights, select_backend

BACKENDS = ["auto", "sdpa", "eager"]


@pytest.fixture(autouse=True)
def _forget_flash_attn():
    module._flash_attn_function.cache_clear()
    yield
    module._flash_attn_function.cache_clear()


@pytest.fixture
def flash_attn(monkeypatch):
    """A stand-in for the package that asserts its contract, computes in float64 and records its calls."""
    calls = []

    def flash_attn_func(q, k, v, *, dropout_p=0.0, softmax_scale=None, causal=False):
        for each in (q, k, v):
            assert each.dtype in {torch.float16, torch.bfloat16}
            assert each.stride(-1) == 1
        assert (q.shape[0], *q.shape[2:]) == (k.shape[0], *k.shape[2:])
        assert k.shape == v.shape
        calls.append({"shape": q.shape, "dropout": dropout_p, "scale": softmax_scale, "causal": causal})
        scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * softmax_scale
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.double()).to(q.dtype)

    fake = ModuleType("flash_attn")
    fake.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    monkeypatch.setattr(module, "_on_gpu", lambda _: True)
    return calls


def make(dtype=torch.float32, queries=5, keys=7):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, queries, 8, generator=generator, dtype=torch.float64)
    k = torch.randn(2, 3, keys, 8, generator=generator, dtype=torch.float64)
    v = torch.randn(2, 3, keys, 8, generator=generator, dtype=torch.float64)
    return [each.to(dtype).requires_grad_() for each in (q, k, v)]


def loop(q, k, v, bias=None, scale=None):
    """One query of one head of one sample at a time, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    bias = torch.zeros(()) if bias is None else bias
    bias = bias.double().expand(*q.shape[:3], k.shape[2])
    rows = []
    for b, h, n in product(*(range(size) for size in q.shape[:3])):
        scores = torch.stack([(q[b, h, n] * key).sum() * scale for key in k[b, h]]) + bias[b, h, n]
        powers = (scores - scores.max()).exp()
        rows.append((powers / powers.sum()) @ v[b, h])
    return torch.stack(rows).view(q.shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias_shape", [None, (2, 1, 1, 7), (1, 3, 5, 7), (2, 3, 5, 7)])
@pytest.mark.parametrize("scale", [None, 0.9])
def test_equals_the_loop_with_gradients(backend, bias_shape, scale):
    bias = None if bias_shape is None else torch.randn(bias_shape, generator=torch.Generator().manual_seed(1))
    inputs, reference = make(), make(torch.float64)
    out = attention(*inputs, bias=bias, scale=scale, backend=backend)
    expected = loop(*reference, bias=bias, scale=scale)
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)

    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    out.backward(direction.float())
    expected.backward(direction)
    for got, wanted in zip(inputs, reference, strict=True):
        torch.testing.assert_close(got.grad.double(), wanted.grad, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_stays_near_the_loop(backend):
    inputs = make(torch.bfloat16)
    out = attention(*inputs, backend=backend)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), loop(*inputs), atol=2e-2, rtol=2e-2)


def test_weights_are_the_softmax_of_scaled_scores_plus_bias():
    q, k, v = make()
    bias = torch.zeros(2, 1, 1, 7)
    bias[1, ..., 4:] = -10000.0
    weights = attention_weights(q, k, bias=bias)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    assert weights[1, ..., 4:].max() == 0
    torch.testing.assert_close((weights @ v).double(), loop(q, k, v, bias=bias), atol=1e-6, rtol=1e-5)


def test_weights_are_float32_in_half_precision():
    q, k, _ = make(torch.bfloat16)
    weights = attention_weights(q, k)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_dropout_keeps_the_mean_and_drops_single_weights(backend):
    torch.manual_seed(0)
    q = torch.zeros(1, 1, 20000, 4)
    k, v = torch.zeros(1, 1, 4, 4), torch.eye(4)[None, None]
    out = attention(q, k, v, dropout=0.25, backend=backend)
    values = {round(value, 4) for value in out.unique().tolist()}
    assert values == {0.0, round(0.25 / 0.75, 4)}
    assert out.mean().item() == pytest.approx(0.25, abs=5e-3)


def test_flash_attn_gets_tokens_before_heads_and_gives_them_back(flash_attn):
    inputs = make(torch.bfloat16)
    out = attention(*inputs, dropout=0.0, scale=0.3)
    assert flash_attn == [{"shape": (2, 5, 3, 8), "dropout": 0.0, "scale": 0.3, "causal": False}]
    torch.testing.assert_close(out.double(), loop(*inputs, scale=0.3), atol=2e-2, rtol=2e-2)
    out.sum().backward()
    assert all(each.grad is not None for each in inputs)


def test_flash_attn_passes_dropout_on(flash_attn):
    attention(*make(torch.float16), dropout=0.5)
    assert flash_attn[0]["dropout"] == 0.5


def test_flash_attn_under_autocast_gets_half_precision(flash_attn):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(*make(torch.float32))
    assert len(flash_attn) == 1
    assert out.dtype == torch.bfloat16


def test_auto_leaves_flash_attn_where_it_cannot_run(flash_attn):
    q, _, _ = make(torch.bfloat16)
    assert select_backend(q) == "flash_attn"
    assert select_backend(q, bias=torch.zeros(2, 1, 1, 7)) == "sdpa"
    assert select_backend(q.float()) == "sdpa"
    assert select_backend(torch.zeros(1, 1, 2, 264, dtype=torch.bfloat16)) == "sdpa"
    assert select_backend(q, backend="eager") == "eager"
    attention(*make(torch.float32))
    assert flash_attn == []


@pytest.mark.parametrize(
    ("q", "bias", "reason"),
    [
        (torch.zeros(1, 1, 2, 8), None, "float32"),
        (torch.zeros(1, 1, 2, 8, dtype=torch.float16), torch.zeros(1, 1, 1, 2), "bias"),
        (torch.zeros(1, 1, 2, 512, dtype=torch.float16), None, "512"),
    ],
)
def test_named_flash_attn_refuses_with_the_reason(flash_attn, q, bias, reason):
    with pytest.raises(InputError, match=reason):
        attention(q, q, q, bias=bias, backend="flash_attn")


def test_named_flash_attn_refuses_without_gpu():
    with pytest.raises(InputError, match=r"needs a GPU; use attention=auto"):
        attention(*make(torch.float16), backend="flash_attn")


@pytest.mark.parametrize("failure", [ImportError("undefined symbol"), OSError("libcudart.so not found")])
def test_package_that_fails_to_load_counts_as_absent(monkeypatch, failure):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise failure

    monkeypatch.setitem(sys.modules, "flash_attn", Broken("flash_attn"))
    monkeypatch.setattr(module, "_on_gpu", lambda _: True)
    q, k, v = make(torch.float16)
    assert select_backend(q) == "sdpa"
    with pytest.raises(InputError, match="does not import"):
        attention(q, k, v, backend="flash_attn")


def test_unknown_backend_is_named_with_the_choice():
    original = select_backend.__wrapped__ if hasattr(select_backend, "__wrapped__") else select_backend
    with pytest.raises(InputError, match="attention=xformers does not exist: use one of auto, flash_attn, sdpa, eager"):
        original(torch.zeros(1, 1, 2, 8), backend="xformers")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_gpu_equals_the_loop(backend):
    inputs = make(torch.bfloat16)
    out = attention(*(each.cuda() for each in inputs), backend=backend)
    torch.testing.assert_close(out.double().cpu(), loop(*inputs), atol=2e-2, rtol=2e-2)


def test_a_cpu_that_learns_in_half_precision_takes_plain_products():
    q = torch.zeros(1, 1, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert select_backend(q.requires_grad_()) == "eager"
        assert select_backend(q, backend="sdpa") == "sdpa"
        with torch.no_grad():
            assert select_backend(q) == "sdpa"
    assert select_backend(q) == "sdpa"
    assert select_backend(q.bfloat16()) == "eager"
    assert select_backend(q.detach().bfloat16()) == "sdpa"

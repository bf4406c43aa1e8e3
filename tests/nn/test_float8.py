"""Linear layers in float8: what rounding costs, and a product in double precision as judge."""

import pytest
import torch
from torch import nn

from ivt2.nn.float8 import Float8Linear, multiplies_float8, quantise, to_float8


def layer(native, dtype=torch.float32, *, device="cpu"):
    torch.manual_seed(0)
    linear = nn.Linear(48, 32, dtype=dtype, device=device).requires_grad_(False)
    linear.weight[3] *= 1e4
    return linear, Float8Linear(linear, native=native)


def rows(dtype=torch.float32):
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
    x[0, 1] *= 1e4
    return x.to(dtype)


def test_a_number_moves_by_a_sixteenth_at_most_and_a_zero_not_at_all():
    x = rows().flatten(0, 1)
    x[4], x[5, 1:] = 0.0, x[5, 1:] * 1e-4
    values, scale = to_float8(x)
    assert values.dtype == torch.float8_e4m3fn
    assert scale.shape == (10, 1)
    exact = values.double() * scale.double()
    smallest_step = scale.double() * 2**-9
    assert ((exact - x).abs() <= torch.maximum(x.abs().double() / 16, smallest_step / 2) * (1 + 1e-6)).all()
    assert torch.equal(exact[4], torch.zeros(48).double())
    largest = x.abs().argmax(dim=1, keepdim=True)
    torch.testing.assert_close(exact.gather(1, largest).float(), x.gather(1, largest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("native", [True, False])
def test_the_product_is_that_of_the_rounded_numbers(native, dtype):
    linear, quantised = layer(native, dtype)
    x = rows(dtype)
    found = quantised(x)
    assert found.dtype == dtype
    weight = quantised.weight.double() * quantised.scale.double()
    inputs = x.double()
    if native:
        values, scale = to_float8(x.flatten(0, 1))
        inputs = (values.double() * scale.double()).view(2, 5, 48)
    expected = inputs @ weight.t() + linear.bias.double()
    size = inputs.abs() @ weight.abs().t()
    assert ((found - expected).abs() <= torch.finfo(dtype).eps * (size + expected.abs())).all()
    exact = x.double() @ linear.weight.double().t() + linear.bias.double()
    lost = (found - exact).abs() / (x.double().abs() @ linear.weight.double().abs().t())
    assert lost.max() < 2 / 16
    assert 0.001 < lost.mean() < 0.01
    assert quantised(x[:0]).shape == (0, 5, 32)


def test_layers_whose_sides_16_does_not_divide_stay_and_so_does_all_else():
    network = nn.ModuleDict({
        "norm": nn.LayerNorm(16),
        "mlp": nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 24)),
        "heads": nn.ModuleList([nn.Linear(32, 16, bias=False)]),
        "conv": nn.Conv3d(16, 16, 1),
    }).requires_grad_(False)
    kept = [network["norm"], network["mlp"][2], network["conv"]]
    weight = network["mlp"][0].weight
    assert quantise(network, native=False) == 2
    assert [type(network["mlp"][0]), type(network["heads"][0])] == [Float8Linear, Float8Linear]
    assert network["heads"][0].bias is None
    assert [network["norm"], network["mlp"][2], network["conv"]] == kept
    assert network["mlp"][0].weight.nbytes == weight.nbytes / 4
    assert set(network.state_dict()) >= {"mlp.0.weight", "mlp.0.scale", "mlp.0.bias", "mlp.2.weight"}
    assert quantise(network, native=False) == 0


def test_only_gpus_from_compute_capability_8_9_on_multiply(monkeypatch):
    assert not multiplies_float8(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert not multiplies_float8(torch.device("cuda"))


@pytest.mark.gpu
def test_a_gpu_multiplies_as_the_cpu():
    device = torch.device("cuda")
    if not multiplies_float8(device):
        pytest.skip("this GPU has no product of float8 matrices")
    x = rows(torch.bfloat16)
    expected = layer(native=True, dtype=torch.bfloat16)[1](x)
    found = layer(native=True, dtype=torch.bfloat16)[1].to(device)(x.to(device)).cpu()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())

import pytest
import safetensors.torch
import torch
from torch import nn

from ivt2.checkpoint import load_weights, save_checkpoint
from ivt2.errors import InputError


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


def test_tied_weights_load_strictly(tmp_path):
    source, target = Tied(), Tied()
    save_checkpoint(tmp_path / "a.ckpt", {"state_dict": source.state_dict()}, config=None, metadata={})
    stored = safetensors.torch.load_file(tmp_path / "a.ckpt" / "model.safetensors")
    assert list(stored) == ["first.weight"]
    load_weights(target, tmp_path / "a.ckpt")
    assert torch.equal(target.second.weight, source.first.weight)


def test_prefix_takes_the_network_out_of_the_training_module(tmp_path):
    source, target = nn.Linear(2, 2), nn.Linear(2, 2)
    tensors = {f"model.{name}": value for name, value in source.state_dict().items()} | {"temperature": torch.ones(1)}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors", prefix="model.")
    assert torch.equal(target.weight, source.weight)


def test_another_architecture_is_described(tmp_path):
    safetensors.torch.save_file(
        {"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(3)} | {f"x{i}": torch.zeros(1) for i in range(5)},
        tmp_path / "w.safetensors",
    )
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(module, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'w.safetensors'}: checkpoint of another architecture")
    assert "2 missing (1.weight, 1.bias)" in message
    assert "5 unexpected (x0, x1, x2, and 2 more)" in message
    assert "1 of another shape (0.bias [3] here [2])" in message
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_damaged_weights_are_not_loaded(tmp_path):
    module = nn.Linear(2, 2)
    save_checkpoint(tmp_path / "a.ckpt", {"state_dict": module.state_dict()}, config=None, metadata={})
    path = tmp_path / "a.ckpt" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"model.safetensors: damaged"):
        load_weights(module, tmp_path / "a.ckpt")

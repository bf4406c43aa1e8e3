import pytest
import safetensors.torch
import torch

from ivt2.checkpoint.codec import STORABLE_DTYPES
from ivt2.checkpoint.tensors import read_tensors, shapes_in, write_tensors
from ivt2.errors import InputError


@pytest.mark.parametrize("dtype", sorted(STORABLE_DTYPES, key=str), ids=str)
def test_every_dtype_comes_back_bit_by_bit(tmp_path, dtype):
    tensor = torch.tensor([0.0, 1.0, -2.0, 0.33]).to(dtype) if dtype != torch.bool else torch.tensor([True, False])
    write_tensors(tmp_path / "t", {"t": tensor, "scalar": tensor[0], "empty": tensor[:0]})
    restored = read_tensors(tmp_path / "t")
    for name, expected in {"t": tensor, "scalar": tensor[0], "empty": tensor[:0]}.items():
        assert restored[name].dtype == dtype
        assert restored[name].shape == expected.shape
        view = torch.uint8 if dtype != torch.bool else torch.bool
        assert torch.equal(restored[name].reshape(-1).view(view), expected.clone().reshape(-1).view(view))


def test_views_of_one_buffer_and_tied_tensors(tmp_path):
    buffer = torch.arange(12.0).reshape(3, 4)
    tied = torch.nn.Parameter(torch.ones(2))
    tensors = {
        "whole": buffer,
        "transposed": buffer.T,
        "row": buffer[1],
        "expanded": torch.ones(1).expand(3),
        "one": tied,
        "other": tied.detach(),
    }
    write_tensors(tmp_path / "t", tensors)
    restored = read_tensors(tmp_path / "t")
    assert sorted(restored) == sorted(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(restored[name], tensor)
    assert restored["one"] is restored["other"]
    assert restored["row"].untyped_storage().data_ptr() != restored["whole"].untyped_storage().data_ptr()


def test_another_format_is_an_input_error(tmp_path):
    (tmp_path / "t").write_bytes(b"PK\x03\x04 not safetensors")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_tensors(tmp_path / "t")


@pytest.mark.parametrize("aliases", ["[]", "5", '{"b": "c"}', '{"b": ["a"]}', "{", "[" * 10**5])
def test_tied_names_of_nothing(tmp_path, aliases):
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "t", metadata={"aliases": aliases})
    for read in (read_tensors, shapes_in):
        with pytest.raises(InputError, match="t: not a readable safetensors file"):
            read(tmp_path / "t")


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="t"):
        write_tensors(tmp_path / "no folder" / "t", {"t": torch.ones(1)})

import pytest
from hydra.errors import HydraException, InstantiationException
from yaml import YAMLError, safe_load

from ivt2.cli.explain import constructor_fault, explain, first
from ivt2.errors import InputError


def none(group):
    return []


def wrapped(cause):
    try:
        try:
            raise cause
        except ValueError as error:
            raise InstantiationException("Error in call to target\nfull_key: module") from error
    except InstantiationException as error:
        return error


def test_an_input_error_inside_hydras_wrapping():
    error = wrapped(InputError("a.tar: damaged;\n fetch it again"))
    assert explain(error, none) == "module: a.tar: damaged; fetch it again"
    assert isinstance(constructor_fault(error), InputError)


def test_a_constructors_own_error_is_found():
    cause = ValueError("embed_dim")
    assert constructor_fault(wrapped(cause)) is cause
    assert first(wrapped(cause), InputError) is None


def test_an_input_error_from_a_loaders_worker_process():
    import torch
    from torch.utils.data import DataLoader

    class Bad(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise InputError("clip.mp4: no video stream; remove it")

    with pytest.raises(InputError) as error:
        next(iter(DataLoader(Bad(), num_workers=1)))
    assert "Traceback" in str(error.value)
    assert explain(error.value, none) == "clip.mp4: no video stream; remove it"


def test_bad_yaml_names_file_and_line(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\nb: [1\n")
    with pytest.raises(YAMLError) as error, file.open() as stream:
        safe_load(stream)
    assert explain(error.value, none).startswith(f"{file}, line 3, column 1: not valid YAML: expected ',' or ']'")


def test_a_folder_that_cannot_be_written():
    error = PermissionError(13, "Permission denied", "/runs/a")
    assert explain(error, none).startswith("/runs/a: cannot write there (Permission denied); choose another folder")


def test_everything_else_becomes_one_line():
    assert explain(HydraException("one\n  two\n\tthree"), none) == "one two three"

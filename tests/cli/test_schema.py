from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue

from ivt2.cli.schema import did_you_mean, mismatch, resolved, validate
from ivt2.errors import InputError


class Thing:
    pass


GOOD = [
    (3, int),
    (3, float),
    (float("inf"), float),
    (True, bool),
    ("a", str),
    (None, int | None),
    ("a/b", Path),
    ("fit", Literal["fit", "test"]),
    ([1, 2], tuple[int, ...]),
    ([0.9, 0.98], tuple[float, float]),
    ([1, 2], Sequence[int]),
    ({"video": 0.8}, Mapping[str, float]),
    ("a", int | str),
    (False, Thing | bool),
    ({"a": [1]}, Any),
]
BAD = [
    ("3", int),
    (True, int),
    (3.5, int),
    (True, float),
    ("many", float),
    (1, bool),
    (3, str),
    (None, int),
    ("valid", Literal["fit", "test"]),
    ([1, "a"], Sequence[int]),
    ("abc", Sequence[str]),
    ([1], tuple[int, int]),
    ({"video": "x"}, Mapping[str, float]),
    ("tiny", Thing),
    ("tiny", Callable[..., int]),
    (3, str | Thing),
]


@pytest.mark.parametrize(("value", "annotation"), GOOD)
def test_values_that_fit(value, annotation):
    assert mismatch(value, annotation) is None


@pytest.mark.parametrize(("value", "annotation"), BAD)
def test_values_that_do_not_fit(value, annotation):
    assert mismatch(value, annotation).endswith(f"got {value!r}") or "item" in mismatch(value, annotation)


def test_the_item_at_fault_is_named():
    assert mismatch([1, 2, "a"], Sequence[int]) == "expected Sequence[int], got [1, 2, 'a'] (item [2])"


def test_an_annotation_that_cannot_be_judged_accepts_everything():
    assert mismatch(3, "NameThatExistsForTypeCheckersOnly") is None


def test_did_you_mean():
    assert did_you_mean("dpeth", ["depth", "width"]) == "; did you mean 'depth'?"
    assert did_you_mean("zzz", ["depth"]) == ""


def linear(**arguments):
    return OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3} | arguments)


def test_a_node_that_fits():
    validate(OmegaConf.create({"a": [{"b": linear(bias=False)}]}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"in_featuers": 2},
            "n.in_featuers: torch.nn.Linear has no argument 'in_featuers'; did you mean 'in_features'?",
        ),
        ({"zzz": 2}, "n.zzz: torch.nn.Linear has no argument 'zzz'; it takes in_features, out_features, bias"),
        ({"in_features": "x"}, "n.in_features: expected int, got 'x'"),
    ],
)
def test_a_node_that_does_not_fit(arguments, message):
    with pytest.raises(InputError) as error:
        validate(OmegaConf.create({"n": linear(**arguments)}))
    assert str(error.value).startswith(message)


def test_all_problems_are_said_at_once():
    with pytest.raises(InputError) as error:
        validate(OmegaConf.create({"n": linear(in_features="x"), "m": linear(out_features="y")}))
    assert str(error.value) == "n.in_features: expected int, got 'x' | m.out_features: expected int, got 'y'"


def test_only_a_partial_node_may_leave_arguments_open():
    node = {"_target_": "torch.optim.AdamW", "lr": 0.1}
    validate(OmegaConf.create({"n": node | {"_partial_": True}}))
    with pytest.raises(InputError, match=r"^n\.params: torch\.optim\.AdamW requires this argument"):
        validate(OmegaConf.create({"n": node}))


def test_a_repeated_node_is_reported_where_it_is_written():
    cfg = OmegaConf.create({"one": linear(in_features="x"), "two": {"three": "${one}"}})
    with pytest.raises(InputError) as error:
        validate(cfg)
    assert str(error.value) == "one.in_features: expected int, got 'x'"


def test_interpolated_values_are_judged_by_what_they_become():
    validate(OmegaConf.create({"width": 2, "n": linear(in_features="${width}")}))
    with pytest.raises(InputError, match=r"n\.in_features: expected int, got 'wide'"):
        validate(OmegaConf.create({"width": "wide", "n": linear(in_features="${width}")}))


def test_an_argument_that_is_itself_built_is_not_judged_as_a_value():
    layer = {"_target_": "torch.nn.TransformerEncoderLayer", "d_model": 4, "nhead": 2}
    encoder = {"_target_": "torch.nn.TransformerEncoder", "encoder_layer": layer, "num_layers": 1}
    validate(OmegaConf.create({"n": encoder}))
    with pytest.raises(InputError, match=r"n\.encoder_layer: expected .*TransformerEncoderLayer, got 'tiny'"):
        validate(OmegaConf.create({"n": encoder | {"encoder_layer": "tiny"}}))


def test_quoted_numbers_become_numbers():
    cfg = OmegaConf.create({"groups": [{"_target_": "torch.nn.LayerNorm", "normalized_shape": 4, "eps": "1e-4"}]})
    validate(cfg)
    assert cfg.groups[0].eps == 1e-4


def test_a_target_outside_the_list_is_refused_before_any_import():
    with pytest.raises(InputError, match="not allowed"):
        validate(OmegaConf.create({"n": {"_target_": "antigravity.fly"}}))


class Keys(Protocol):
    seed: int
    run: Sequence[Literal["fit", "test"]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": 1}, "run: not set; set it with run=..., see --help"),
        ({"seed": "a", "run": []}, "seed: expected int, got 'a'"),
        ({"seed": 1, "run": ["fti"]}, "run: expected Sequence[Literal['fit', 'test']], got ['fti'] (item [0])"),
        ({"seed": 1, "run": "fit"}, "run: expected Sequence[Literal['fit', 'test']], got 'fit'"),
    ],
)
def test_root_keys(config, message):
    with pytest.raises(InputError) as error:
        validate(OmegaConf.create(config), Keys)
    assert str(error.value) == message


def test_resolved_refuses_what_is_missing_or_leads_nowhere():
    assert resolved(OmegaConf.create({"a": 1, "b": "${a}"})) == {"a": 1, "b": 1}
    with pytest.raises(MissingMandatoryValue):
        resolved(OmegaConf.create({"a": "???"}))
    with pytest.raises(InterpolationKeyError):
        resolved(OmegaConf.create({"a": "${b}"}))

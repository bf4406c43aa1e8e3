import json
from collections import Counter, OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from ivt2.checkpoint.codec import decode, encode


def through_json(state):
    document, weights, tensors = encode(state)
    return decode(json.loads(json.dumps(document, allow_nan=False)), weights, tensors)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        7,
        1 << 70,
        0.1,
        float("inf"),
        "text",
        "\udc80",
        b"\x00\xff",
        (),
        [1, (2, [3])],
        {"a": 1},
        {0: "int", "0": "str", None: "none", (1, 2): "tuple", 1.5: "float"},
        {"$": "tuple", "value": [1]},
        OrderedDict([("b", 1), ("a", 2)]),
        Counter({3: 2}),
        torch.Size([2, 3]),
        torch.bfloat16,
        torch.device("cpu"),
        Path("a/b"),
        np.float32(0.1),
        np.int64(-3),
        np.bool_(True),
        np.str_("label"),
    ],
    ids=repr,
)
def test_plain_values_come_back_equal_and_of_the_same_type(value):
    restored = through_json({"state": value})["state"]
    assert restored == value
    assert type(restored) is type(value)


def test_nan_comes_back():
    assert np.isnan(through_json([float("nan")])[0])


def test_order_of_keys_is_kept():
    assert list(through_json({3: 0, 1: 0, 2: 0})) == [3, 1, 2]


def test_arrays_come_back():
    for array in (np.arange(6, dtype=np.uint32).reshape(2, 3).T, np.array(2.5)):
        restored = through_json({"a": array})["a"]
        assert restored.dtype == array.dtype
        assert restored.shape == array.shape
        np.testing.assert_array_equal(restored, array)


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": {1: [0, Fraction(1, 2)]}}, "state['a'][1][1]: a checkpoint cannot store Fraction"),
        ({"f": print}, "state['f']"),
        ({"f": [{1, 2}]}, "state['f'][0]"),
        ({"n": np.array(["x"], dtype=object)}, "state['n']"),
        ({"t": torch.zeros(2).to_sparse()}, "state['t']"),
        ({"t": torch.zeros(2, device="meta")}, "state['t']"),
        ({"t": torch.zeros(2, dtype=torch.complex128)}, "state['t']"),
        ({"n": np.datetime64("2020-01-01")}, "state['n']"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_place(state, place):
    with pytest.raises(TypeError) as caught:
        encode(state)
    assert str(caught.value).startswith(place)


def test_weights_keep_their_names_and_other_tensors_their_place():
    state = {"state_dict": {"a.weight": torch.ones(1), "extra": 3}, "optimizer": {0: torch.ones(2), "0": torch.ones(3)}}
    document, weights, tensors = encode(state)
    assert set(weights) == {"a.weight"}
    assert {name: len(tensor) for name, tensor in tensors.items()} == {"optimizer/0": 2, "optimizer/0~": 3}
    assert document["state_dict"]["extra"] == 3

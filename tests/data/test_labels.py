"""Exact: the number of a sample's class, or the reason why there is none."""

import json

import pytest

from ivt2.data.labels import LabelReader
from ivt2.data.ledger import SampleError

NAMES = ["run", "jump"]


def read(facts, **options):
    return LabelReader(**options)({} if facts is None else {"json": json.dumps(facts).encode()})


def test_the_number_of_the_class_is_the_one_that_is_stated():
    assert read({"class_index": 0, "label": "jump"}) == 0
    assert read({"class_index": 709}, required=True) == 709


def test_the_number_of_a_named_class_is_its_place():
    assert read({"class_index": 0, "label": "jump"}, classes=NAMES) == 1


@pytest.mark.parametrize("facts", [None, {}, {"class_index": None}, {"caption": "a dog"}])
@pytest.mark.parametrize("classes", [(), NAMES])
def test_a_class_may_be_missing_unless_it_is_required(facts, classes):
    assert read(facts, classes=classes) == -1
    with pytest.raises(SampleError, match="label_missing"):
        read(facts, classes=classes, required=True)


@pytest.mark.parametrize("value", [-1, -2, 1.0, "1", True, [1], 2**31])
@pytest.mark.parametrize("required", [False, True])
def test_what_is_no_number_of_a_class_is_never_taken_for_one(value, required):
    with pytest.raises(SampleError, match="label_invalid"):
        read({"class_index": value}, required=required)


@pytest.mark.parametrize(("value", "reason"), [("walk", "label_unknown"), ("", "label_unknown"), (1, "label_invalid")])
def test_a_name_that_is_not_of_the_classes_is_refused(value, reason):
    with pytest.raises(SampleError, match=reason):
        read({"label": value}, classes=NAMES)


def test_damaged_json_is_said_to_be_damaged():
    with pytest.raises(SampleError, match="json_invalid"):
        LabelReader()({"json": b"{"})

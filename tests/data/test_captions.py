"""Exact: which captions of a sample are used, or the reason why none is."""

import json

import numpy as np
import pytest

from ivt2.data.captions import CaptionReader, choose_caption, kinds_of
from ivt2.data.ledger import SampleError


def members(**facts):
    return {"json": json.dumps(facts).encode()}


def test_the_caption_of_a_step():
    text = ["a", "b", "c"]
    drawn = {choose_caption(text, "random", np.random.default_rng(seed)) for seed in range(40)}
    assert drawn == {"a", "b", "c"}
    assert choose_caption(text, "first", np.random.default_rng(0)) == "a"


def test_captions_of_too_few_words_are_not_used():
    several = members(caption="Dog!", captions=["A dog.", "dogs - / -", "a dog runs"])
    found = CaptionReader(min_words=2)(several)
    assert found.annotated == ["A dog.", "a dog runs"]
    assert found.text == ["a dog", "a dog runs"]
    with pytest.raises(SampleError, match="text_too_short"):
        CaptionReader(min_words=2)(members(caption="dog"))
    assert len(CaptionReader()(several).text) == 4


def test_one_kind_may_stand_in_place_of_the_annotated_captions():
    found = CaptionReader(instead="audio", kinds=["fused"])(members(caption="A dog.", caption_kinds=KINDS))
    assert found.annotated == ["Barking!", "A bark."]
    assert found.text == ["barking", "a bark"]
    assert found.kinds == {"fused": ["a dog barks"]}
    assert CaptionReader(instead="audio", min_words=2)(members(caption_kinds=KINDS)).annotated == ["A bark."]
    with pytest.raises(SampleError, match="caption_kind_missing"):
        CaptionReader(instead="video")(members(caption="A dog.", caption_kinds=KINDS))


def test_the_kinds_that_a_sample_has():
    assert kinds_of(members(caption_kinds={**KINDS, "video": []})) == ["fused", "audio", "speech"]
    assert kinds_of(members(caption="A dog.")) == kinds_of({"txt": b"A dog."}) == []


KINDS = {"fused": ["A dog barks."], "audio": ["Barking!", "A bark."], "speech": ["Sit!"]}


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        (KINDS, None),
        ({"fused": ["A dog barks."]}, "caption_kind_missing"),
        ({**KINDS, "speech": []}, "caption_kind_missing"),
        ("fused", "caption_kind_missing"),
        (None, "caption_kind_missing"),
        ({**KINDS, "audio": [3]}, "text_not_a_string"),
        ({**KINDS, "audio": ["?!"]}, "text_empty"),
        ({**KINDS, "audio": ["barking"]}, "text_too_short"),
    ],
)
def test_captions_by_kind(stated, reason):
    asked = ["audio", "fused", "speech"]
    sample = members(caption="A dog barks.", caption_kinds=stated)
    if reason is not None:
        with pytest.raises(SampleError, match=reason):
            CaptionReader(kinds=asked, min_words=2)(sample)
        return
    found = CaptionReader(kinds=asked, min_words=2)(sample)
    assert found.kinds == {"audio": ["a bark"], "fused": ["a dog barks"], "speech": ["sit"]}
    assert list(found.kinds) == asked

"""Captions whose language nobody doubts."""

import pytest

from ivt2.data.languages import UNKNOWN, language_of


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "a woman is slicing an onion on a cutting board"),
        ("de", "zwei Männer ringen in einem Ring"),
        ("fr", "un homme joue de la guitare"),
        ("es", "los niños corren en el parque"),
        ("zh", "一个男人在弹吉他"),
        ("ko", "남자가 기타를 치고 있다"),
        (UNKNOWN, "a dog"),
    ],
)
def test_a_caption_has_a_language(language, text):
    assert language_of(text) == language

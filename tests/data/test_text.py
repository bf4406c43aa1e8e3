import pytest

from ivt2.data.text import normalize_caption


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ('A Photo of action "Playing guitar".', "a photo of action playing guitar"),
        ("He's riding a bike -- fast/slow; <person> waves!\n", "hes riding a bike fast slow person waves"),
        ("一个人在跳舞。", "一个人在跳舞。"),
        (",.'!?\"()*#:;~", ""),
        ("a-b/c", "a b c"),
        ("a \t\n b", "a b"),
        ("a\tb", "a\tb"),
        ("  a  \n", "a"),
        ("keep @&%$_+=[]{}<>|", "keep @&%$_+=[]{}<>|"),
        ("", ""),
        ("<PERSON>, <per.son>", "person person"),
    ],
)
def test_normalize_caption(caption, expected):
    assert normalize_caption(caption) == expected


def test_idempotent_over_short_strings_of_every_kind_of_piece():
    pieces = ["a", "B", " ", "\n", "\t", "-", "/", ".", "~", "<", ">", "person", "<person>", "İ", "Σ", "。", "\u3000"]
    captions = [
        "".join(parts)
        for first in pieces
        for second in pieces
        for third in pieces
        for parts in [(first, second, third)]
    ]
    captions += [f"<{caption}>" for caption in captions]
    for caption in captions:
        once = normalize_caption(caption)
        assert normalize_caption(once) == once, repr(caption)
        assert not set(once) & set(",.'!?\"()*#:;~-/"), repr(caption)

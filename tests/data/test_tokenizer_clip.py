import gzip
import json
import pickle

import pytest
import torch
import transformers

from ivt2.data.tokenizer_clip import END, START, WORD_END, ClipTokenizer, _byte_symbols, clean
from ivt2.errors import InputError

HEADER = '"bpe_simple_vocab_16e6.txt#version: 0.2 - a comment'
MERGES = [
    "t h", "th e</w>", "r e", "re d</w>", "d o", "do g</w>", "i n", "in g</w>", "r u", "ru n", "n ing</w>",
    "' s</w>", "Ã ©", "a t</w>", "c at</w>", "1 2", "! !</w>", "< |",
]  # fmt: skip
TEXTS = [
    "",
    " ",
    "The red  dog\tis running.",
    "the dog's cat, don't! they're we'll I'd",
    "12 dogs in 2024",
    "\u00c9t\u00e9 cafe\u0301 na\u00efve \u00df",
    "\u4f60\u597d \u30ab\u30e1\u30e9 \ud55c\uad6d\uc5b4",
    "\U0001f3b8 guitar \U0001f3b8\U0001f3b8",
    "a_b-c/d\\e @#$%^ &* ()[]{}~`",
    "\u0130stanbul \u00b2 \u00bd",
    "the " * 50,
    "thethethe" * 20,
]


@pytest.fixture
def merges_file(tmp_path):
    (tmp_path / "bpe.txt").write_text("\n".join([HEADER, *MERGES]) + "\n", encoding="utf-8")
    return tmp_path / "bpe.txt"


@pytest.fixture
def tables(merges_file):
    """Ids and merges as the judge takes them."""
    model = json.loads(ClipTokenizer(merges_file)._tokenizer.to_str())["model"]
    return model["vocab"], [tuple(line.split(" ")) for line in MERGES]


def test_ids_are_numbered_as_openai_does(merges_file, tables):
    ids, _ = tables
    assert [ids[token] for token in ("!", "~", "¡", "ÿ", "Ā", "!</w>", "th", "the</w>")] == [
        0,
        93,
        94,
        187,
        188,
        256,
        512,
        513,
    ]
    assert ids["<|startoftext|>"] == 512 + len(MERGES)
    assert ids["<|endoftext|>"] == 513 + len(MERGES)
    size = ClipTokenizer(merges_file).vocab_size
    assert size == 514 + len(MERGES)
    assert ClipTokenizer(merges_file).vocabulary == (size, 0, -1, size - 2, size - 1, -1)


def test_a_caption_by_hand(merges_file, tables):
    ids, _ = tables
    words = ["<|startoftext|>", "the</w>", "red</w>", "dog</w>", "'s</w>", "1</w>", "2</w>", "!!</w>", "<|endoftext|>"]
    input_ids, valid = ClipTokenizer(merges_file, max_length=11)(["The RED\n dog\u2019s 12!&#33;"])
    assert input_ids.tolist() == [[*(ids[word] for word in words), 0, 0]]
    assert valid.tolist() == [[True] * 9 + [False] * 2]


@pytest.mark.parametrize("max_length", [12, 77])
def test_ids_agree_with_transformers(merges_file, tables, max_length):
    vocab, merges = tables
    judge = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    expected = judge(TEXTS, padding="max_length", truncation=True, max_length=max_length)
    input_ids, valid = ClipTokenizer(merges_file, max_length=max_length)(TEXTS)
    assert input_ids.dtype == torch.int64
    assert valid.tolist() == [[bool(flag) for flag in row] for row in expected["attention_mask"]]
    padded = torch.tensor(expected["input_ids"])
    assert torch.equal(input_ids, padded * valid)  # the judge pads with the end token
    assert not input_ids[~valid].any()


def test_every_kind_of_file_gives_the_same_ids(merges_file, tables, tmp_path):
    vocab, _ = tables
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
    (tmp_path / "bpe.txt.gz").write_bytes(gzip.compress(merges_file.read_bytes()))
    for name, merges in (("new", [line.split(" ") for line in MERGES]), ("old", MERGES)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"model": {"vocab": vocab, "merges": merges}}))
    expected = ClipTokenizer(merges_file)(TEXTS)
    for name in ("vocab.json", "merges.txt", "bpe.txt.gz", "new.json", "old.json"):
        assert all(map(torch.equal, ClipTokenizer(tmp_path / name)(TEXTS), expected)), name


def test_only_the_merges_that_have_a_row_are_read(tmp_path):
    """OpenAI's file goes on behind the last of them."""
    characters = [chr(number) for number in range(33, 127)]
    merges = [f"{a} {b}" for a in characters for b in characters]
    merges += [f"{a}{b} {c}" for a in characters for b in characters for c in characters[:6]]
    (tmp_path / "bpe.txt").write_text("\n".join([HEADER, *merges]))
    assert len(merges) > 48_894
    tokenizer = ClipTokenizer(tmp_path / "bpe.txt")
    assert tokenizer.vocab_size == 49_408
    assert tokenizer([""])[0][0, :2].tolist() == [49_406, 49_407]


def test_special_tokens_in_a_text_are_characters(merges_file):
    tokenizer = ClipTokenizer(merges_file)
    input_ids, valid = tokenizer(["a <|endoftext|> b <|startoftext|>"])
    assert (input_ids >= tokenizer.vocab_size - 2).sum() == 2
    assert valid.sum() > 10


def test_text_is_cleaned():
    assert clean(" A &amp;amp; B\u00a0 \u201cC\u201d\n cafe\u0301 ") == 'a & b "c" caf\u00e9'


def test_it_can_be_pickled(merges_file):
    tokenizer = ClipTokenizer(merges_file)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert all(map(torch.equal, again(TEXTS), tokenizer(TEXTS)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt cannot be read .FileNotFoundError.*give CLIP's"),
        ("a.txt", b"\xff\xfe", "cannot be read .UnicodeDecodeError"),
        ("a.txt.gz", gzip.compress(b"t h\n", mtime=0)[:-9], "cannot be read .EOFError"),
        ("a.txt", b"t h e\n", "line 1 is not a pair"),
        ("a.txt", b"", "line 1 is not a pair"),
        ("a.txt", b"t h\nt h\n", "builds a piece twice"),
        ("a.txt", b"th e</w>\n", "lacks the piece 'th'"),
        ("a.json", b"{", "is not JSON"),
        ("vocab.json", b"{}", "merges.txt cannot be read"),
        ("a.json", b'{"model": {"vocab": {}}}', "has no table"),
        ("a.json", b'{"model": {"vocab": {"a": 0, "b": 0}, "merges": []}}', "damaged"),
        ("a.json", b'{"model": {"vocab": {"a": 0}, "merges": []}}', "lacks the piece"),
        ("a.json", b'{"model": {"vocab": {"a": "0"}, "merges": []}}', "damaged"),
        ("a.json", b'{"model": {"vocab": {"a": [0]}, "merges": []}}', "damaged"),
        ("a.json", b'{"model": {"vocab": {"a": 0}, "merges": [5]}}', "damaged"),
        ("a.json", b'{"model": {"vocab": {"a": 0}, "merges": [[["a"], "b"]]}}', "damaged"),
        ("a.json", b'{"model": ' + b"[" * 10**5, "is not JSON"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        ClipTokenizer(tmp_path / name)


def test_pieces_that_are_half_a_character(tmp_path, merges_file):
    pieces = dict.fromkeys([*_byte_symbols(), *(symbol + WORD_END for symbol in _byte_symbols()), START, END, "\ud800"])
    model = {"vocab": {piece: index for index, piece in enumerate(pieces)}, "merges": []}
    (tmp_path / "a.json").write_text(json.dumps({"model": model}))
    with pytest.raises(InputError, match="has pieces that are no text"):
        ClipTokenizer(tmp_path / "a.json")


def test_a_file_without_end_is_read_to_a_limit():
    with pytest.raises(InputError, match="/dev/zero is larger than"):
        ClipTokenizer("/dev/zero")


def test_a_row_needs_room_for_text(merges_file):
    with pytest.raises(InputError, match="max_length=2 leaves no room"):
        ClipTokenizer(merges_file, max_length=2)

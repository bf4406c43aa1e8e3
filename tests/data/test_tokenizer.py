import hashlib
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from ivt2.batch import Vocabulary
from ivt2.data.tokenizer import WordPieceTokenizer, read_vocabulary, train_vocabulary
from ivt2.errors import InputError

ROOT = Path(__file__).parents[2]
CAPTIONS = [
    "a man is playing the guitar",
    "a woman plays guitar on a stage",
    "two dogs are running and playing in the park",
    "the red car drives down the road",
    "a red dog runs after a red car!",
    "naïve café, 你好 world 123",
]
ODD = [
    "",
    " ",
    "A man is playing guitar.",
    "unaffable RUNNING playing",
    "\u00c9t\u00e9  on\tthe red-car\n",
    "e\u0301te\u0301",
    "Hello, 你好 world",
    "你好吗。",
    "we're don't can't",
    "a\u200bb\u0000c\ufffdd\u00a0e",
    "[MASK] the [SEP] dog [CLS] [PAD] [UNK]",
    "red[SEP]car [mask] [unused3]",
    "##ing a##b",
    "x" * 101,
    "x" * 100,
    "car" * 40,
    "ÄÖÜß ΑΣ İstanbul ﬁne",
    "🎸 guitar 🎸🎸",
    "the " * 50,
    "!?.,;:-_/\\|@#$%^&*()[]{}<>~`'\"",
    "カメラ 한국어 ไทย",
]


@pytest.fixture
def vocab_file(tmp_path):
    train_vocabulary(CAPTIONS, 200, tmp_path / "vocab.txt")
    return tmp_path / "vocab.txt"


@pytest.mark.parametrize("max_length", [12, 40])
def test_ids_agree_with_transformers(vocab_file, max_length):
    judge = transformers.BertTokenizer(vocab=str(vocab_file))
    expected = judge(ODD, padding="max_length", truncation=True, max_length=max_length)
    input_ids, valid = WordPieceTokenizer(vocab_file, max_length=max_length, add_sep=True)(ODD)
    for caption, ids, real, want_ids, want_real in zip(
        ODD, input_ids.tolist(), valid.tolist(), expected["input_ids"], expected["attention_mask"], strict=True
    ):
        assert ids == want_ids, repr(caption)
        assert real == [bool(flag) for flag in want_real], repr(caption)


def test_no_separator_unless_asked_for(vocab_file):
    open_ids, open_valid = WordPieceTokenizer(vocab_file, max_length=8)(["the red car", "the " * 20])
    closed_ids, closed_valid = WordPieceTokenizer(vocab_file, max_length=8, add_sep=True)(["the red car", "the " * 20])
    assert open_ids[0, 0] == closed_ids[0, 0] == 101
    assert 102 not in open_ids
    assert open_valid.sum(1).tolist() == [4, 8]
    assert closed_valid.sum(1).tolist() == [5, 8]
    assert closed_ids[:, [4, 7]].tolist() == [[102, 0], [closed_ids[1, 1].item(), 102]]
    assert torch.equal(open_ids[0, :4], closed_ids[0, :4])


def test_types_and_shapes(vocab_file):
    tokenizer = WordPieceTokenizer(vocab_file, max_length=6)
    input_ids, valid = tokenizer(["a", "b"])
    assert (input_ids.dtype, valid.dtype) == (torch.int64, torch.bool)
    assert input_ids.shape == valid.shape == (2, 6)
    empty_ids, empty_valid = tokenizer([])
    assert empty_ids.shape == empty_valid.shape == (0, 6)
    assert (empty_ids.dtype, empty_valid.dtype) == (torch.int64, torch.bool)
    assert (input_ids[~valid] == tokenizer.vocabulary.pad_id).all()


def test_vocabulary_and_hash(vocab_file):
    tokenizer = WordPieceTokenizer(vocab_file, max_length=6)
    assert tokenizer.vocabulary == Vocabulary(size=200, pad_id=0, unk_id=100, cls_id=101, sep_id=102, mask_id=103)
    tokens = read_vocabulary(vocab_file)
    assert tokenizer.vocabulary_hash == hashlib.sha256("\n".join(tokens).encode()).hexdigest()
    other = vocab_file.with_name("other.txt")
    other.write_text("\n".join([*tokens[:-1], "zebra"]))
    assert WordPieceTokenizer(other, max_length=6).vocabulary_hash != tokenizer.vocabulary_hash


def test_special_ids_come_from_the_file(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("a\n[MASK]\n[SEP]\n[CLS]\n[UNK]\n[PAD]\n##b\n")
    tokenizer = WordPieceTokenizer(file, max_length=5)
    assert tokenizer.vocabulary == Vocabulary(size=7, pad_id=5, unk_id=4, cls_id=3, sep_id=2, mask_id=1)
    assert tokenizer(["ab c"])[0].tolist() == [[3, 0, 6, 4, 5]]


def test_pickle_gives_the_same_ids(vocab_file):
    tokenizer = WordPieceTokenizer(vocab_file, max_length=12)
    copy = pickle.loads(pickle.dumps(tokenizer))
    for expected, actual in zip(tokenizer(ODD), copy(ODD), strict=True):
        assert torch.equal(actual, expected)
    assert copy.vocabulary == tokenizer.vocabulary


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_starts_no_thread_and_survives_a_fork(vocab_file):
    script = (
        "import os, sys\n"
        "from ivt2.data.tokenizer import WordPieceTokenizer, train_vocabulary\n"
        "threads = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = threads()\n"
        "train_vocabulary(['a man plays', 'a man sings'] * 50, 120, sys.argv[1] + '.again')\n"
        "tokenizer = WordPieceTokenizer(sys.argv[1], max_length=8)\n"
        "tokenizer(['a man'] * 100)\n"
        "print(threads() - before)\n"
        "sys.stdout.flush()\n"
        "child = os.fork()\n"
        "tokenizer(['a man'] * 100)\n"
        "if child:\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-W", "ignore", "-c", script, str(vocab_file)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "0\n0\n"
    assert "parallelism" not in result.stderr


def test_tokenize(vocab_file):
    tokenizer = WordPieceTokenizer(vocab_file, max_length=4)
    assert tokenizer.tokenize("The red car") == ["the", "red", "car"]
    assert tokenizer.tokenize("") == []
    assert len(tokenizer.tokenize("the " * 20)) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\na\n", r"lacks \[SEP\] \[MASK\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", "'a' more than once"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "lacks"),
    ],
)
def test_bad_vocabulary_is_named(tmp_path, content, message):
    file = tmp_path / "vocab.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        WordPieceTokenizer(file, max_length=8)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.txt cannot be read \(FileNotFoundError\)"):
        WordPieceTokenizer(tmp_path / "absent.txt", max_length=8)


def test_max_length_must_leave_room(vocab_file):
    with pytest.raises(InputError, match="at least 2"):
        WordPieceTokenizer(vocab_file, max_length=1)
    with pytest.raises(InputError, match="at least 3"):
        WordPieceTokenizer(vocab_file, max_length=2, add_sep=True)


def test_line_separators_inside_tokens_do_not_shift_ids(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n\u2028\n\x85\na\n", encoding="utf-8")
    assert WordPieceTokenizer(file, max_length=3)(["a"])[0].tolist() == [[2, 7, 0]]


def test_trained_vocabulary_has_the_layout_of_bert(vocab_file):
    tokens = read_vocabulary(vocab_file)
    assert len(tokens) == 200
    assert tokens[:3] == ["[PAD]", "[unused0]", "[unused1]"]
    assert tokens[99:104] == ["[unused98]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokens[104] == "##a"  # an a inside a word is the commonest character, before the 8 at the start of one
    assert tokens[-1].startswith("[unused")
    assert len(set(tokens)) == 200


def test_training_depends_on_nothing_but_the_captions(tmp_path, vocab_file):
    shuffled = CAPTIONS.copy()
    random.Random(0).shuffle(shuffled)
    train_vocabulary(iter(shuffled), 200, tmp_path / "shuffled.txt")
    assert (tmp_path / "shuffled.txt").read_bytes() == vocab_file.read_bytes()
    arguments = f"{CAPTIONS!r}, 200, {str(tmp_path / 'other.txt')!r}"
    script = f"from ivt2.data.tokenizer import train_vocabulary; train_vocabulary({arguments})"
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True)
        assert (tmp_path / "other.txt").read_bytes() == vocab_file.read_bytes()


def merge_slowly(split, pair, merged):
    for position in range(len(split) - 1):
        if (split[position], split[position + 1]) == pair:
            return [*split[:position], merged, *merge_slowly(split[position + 2 :], pair, merged)]
    return split


def test_training_agrees_with_a_slow_count(tmp_path):
    """Count all pairs anew before every merge."""
    generator = random.Random(1)
    words = ["".join(generator.choices("abc", k=generator.randint(1, 6))) for _ in range(60)]
    captions = [" ".join(generator.choices(words, k=8)) for _ in range(40)]
    train_vocabulary(captions, 160, tmp_path / "vocab.txt")
    splits = [[word[0], *("##" + letter for letter in word[1:])] for caption in captions for word in caption.split()]
    pieces = [piece for split in splits for piece in split]
    expected = sorted(set(pieces), key=lambda piece: (-pieces.count(piece), piece))
    while len(expected) < 160 - 104:
        counts = {}
        for split in splits:
            for position in range(len(split) - 1):
                pair = (split[position], split[position + 1])
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merged = best[0] + best[1][2:]
        if merged not in expected:
            expected.append(merged)
        splits = [merge_slowly(split, best, merged) for split in splits]
    assert read_vocabulary(tmp_path / "vocab.txt")[104:] == expected


def test_trained_vocabulary_knows_its_captions(vocab_file):
    tokenizer = WordPieceTokenizer(vocab_file, max_length=60)
    input_ids, _ = tokenizer(CAPTIONS)
    assert tokenizer.vocabulary.unk_id not in input_ids
    assert tokenizer.tokenize("the red guitar") == ["the", "red", "guitar"]


def test_small_vocabulary_keeps_the_commonest_characters(tmp_path):
    train_vocabulary(["aaa aa b", "a c"], 106, tmp_path / "vocab.txt")
    assert read_vocabulary(tmp_path / "vocab.txt")[104:] == ["##a", "a"]


def test_training_input_errors(tmp_path):
    with pytest.raises(InputError, match="at least 105"):
        train_vocabulary(CAPTIONS, 104, tmp_path / "vocab.txt")
    with pytest.raises(InputError, match="no word"):
        train_vocabulary(["", "  "], 200, tmp_path / "vocab.txt")
    assert list(tmp_path.iterdir()) == []

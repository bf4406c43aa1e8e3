"""WordPiece as BERT uses it, from a vocabulary file, and a trainer for such a file."""

import hashlib
import heapq
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from ivt2.batch import Vocabulary
from ivt2.errors import InputError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"
"""Prefix of a piece that continues a word."""

_NUM_UNUSED = 99
_RESERVED = (
    "[PAD]",
    *(f"[unused{index}]" for index in range(_NUM_UNUSED)),
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
)


class WordPieceTokenizer:
    """Captions to ids of a fixed length.

    Text is cleaned, lower-cased, stripped of accents and split at spaces, punctuation and CJK characters, then cut into
    the longest known pieces. A special token that stands literally in the text, such as ``[SEP]``, becomes its id; none
    is left after :func:`ivt2.data.text.normalize_caption`, for they are upper-case. Can be pickled for workers.

    Args:
        vocab_file: one token per line, the line number being its id (BERT's ``vocab.txt``).
        max_length: length of every row, start token included; longer texts are cut, shorter ones padded.
        add_sep: close each text with [SEP] as BERT does. The reference's stage 2 never does, and so do the released
            weights, hence the default.

    Raises:
        InputError: if the file is missing or unreadable, lacks a special token or has a token twice, or if
            ``max_length`` leaves no room for text.

    Source: BERT (arXiv:1810.04805); reference multi_modality, tokenizer of stage 2 (its missing separator).
    """

    def __init__(self, vocab_file: str | Path, *, max_length: int, add_sep: bool = False) -> None:
        num_special = 2 if add_sep else 1
        if max_length <= num_special:
            raise InputError(f"max_length={max_length} leaves no room for text: use at least {num_special + 1}")
        tokens = read_vocabulary(vocab_file)
        ids = {token: index for index, token in enumerate(tokens)}
        self.max_length = max_length
        self.vocabulary = Vocabulary(len(tokens), *(ids[token] for token in SPECIAL_TOKENS))
        self.vocabulary_hash = hashlib.sha256("\n".join(tokens).encode()).hexdigest()
        self._tokenizer = Tokenizer(WordPiece(ids, continuing_subword_prefix=CONTINUATION))
        self._tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        self._tokenizer.normalizer = BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()
        self._closing = [self.vocabulary.sep_id] if add_sep else []

    def __call__(self, captions: Sequence[str]) -> tuple[Int64[Tensor, "M L"], Bool[Tensor, "M L"]]:
        """Encode captions.

        Returns:
            Token ids, and True where a token is real (not padding).
        """
        shape = (len(captions), self.max_length)
        input_ids = torch.full(shape, self.vocabulary.pad_id)
        valid = torch.zeros(shape, dtype=torch.bool)
        room = self.max_length - 1 - len(self._closing)
        for row, caption in enumerate(captions):
            # The library's batch call and its padding start threads, of which older releases warn when loaders fork.
            pieces = self._tokenizer.encode(caption, add_special_tokens=False).ids
            ids = [self.vocabulary.cls_id, *pieces[:room], *self._closing]
            input_ids[row, : len(ids)] = torch.tensor(ids)
            valid[row, : len(ids)] = True
        return input_ids, valid

    def tokenize(self, caption: str) -> list[str]:
        """Pieces of a caption, without start token, uncut and not padded: for figures and debugging."""
        tokens: list[str] = self._tokenizer.encode(caption, add_special_tokens=False).tokens
        return tokens


def read_vocabulary(file: str | Path) -> list[str]:
    """Tokens of a vocabulary file, in the order of their ids.

    Raises:
        InputError: if the file is missing or no UTF-8 text, lacks a special token or has a token twice.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"vocabulary {file} cannot be read ({type(error).__name__}): give a BERT model's vocab.txt or train one"
        ) from error
    # Not splitlines: BERT's vocabulary holds characters that it would take for line ends.
    tokens = text.removesuffix("\n").split("\n")
    repeated = [token for token, count in Counter(tokens).items() if count > 1]
    if repeated:
        raise InputError(f"vocabulary {file} has {repeated[0]!r} more than once: each line must be a token of its own")
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise InputError(f"vocabulary {file} lacks {' '.join(missing)}: give the vocab.txt of a BERT model")
    return tokens


def train_vocabulary(captions: Iterable[str], size: int, file: str | Path) -> None:
    """Learn a WordPiece vocabulary and write it in BERT's id layout.

    Ids: 0 [PAD], 1 to 99 unused, 100 [UNK], 101 [CLS], 102 [SEP], 103 [MASK], then characters by frequency, then pieces
    in the order they were merged, then unused ones up to ``size``, so that a network can be built for ``size`` tokens.
    The most frequent pair of neighbouring pieces is merged until the vocabulary is full or no pair occurs twice. The
    result depends on the captions alone (the library's own trainer gives another one in every process).

    Args:
        captions: training text.
        size: number of lines of the file, at least 105.
        file: where to write, its folder is made when absent; replaced in one step.

    Raises:
        InputError: if ``size`` leaves no room, the captions hold no word, or the file cannot be written.
    """
    room = size - len(_RESERVED)
    if room < 1:
        raise InputError(f"vocabulary size {size} leaves no room for words: use at least {len(_RESERVED) + 1}")
    words = _count_words(captions)
    if not words:
        raise InputError("the captions hold no word to learn a vocabulary from: check the caption field")
    tokens = [*_RESERVED, *_learn_pieces(words, room)]
    tokens += [f"[unused{_NUM_UNUSED + index}]" for index in range(size - len(tokens))]
    destination = Path(file)
    temporary = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}.partial")  # ranks write at once
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join(tokens) + "\n", encoding="utf-8")
        temporary.replace(destination)
    except OSError as error:
        raise InputError(f"{destination}: cannot be written ({error.strerror}); choose another folder") from error


def _count_words(captions: Iterable[str]) -> Counter[str]:
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words: Counter[str] = Counter()
    for caption in captions:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    return words


def _learn_pieces(words: Counter[str], room: int) -> list[str]:
    """Characters, most frequent first, and merged pieces; at most ``room``. Ties go by the order of characters."""
    counts = list(words.values())
    splits = [[word[0], *(CONTINUATION + character for character in word[1:])] for word in words]
    frequency: Counter[str] = Counter()
    for pieces, count in zip(splits, counts, strict=True):
        for piece in pieces:
            frequency[piece] += count
    learned = sorted(frequency, key=lambda piece: (-frequency[piece], piece))[:room]
    pairs = _PairCounts()
    for index, (pieces, count) in enumerate(zip(splits, counts, strict=True)):
        pairs.add(pieces, index, count)
    while len(learned) < room and (pair := pairs.most_frequent()) is not None:
        merged = pair[0] + pair[1].removeprefix(CONTINUATION)
        # Never one that is there already: a piece is always put together by the same merges, whatever stands around it.
        learned.append(merged)
        for index in pairs.words_with(pair):
            pairs.add(splits[index], index, -counts[index])
            splits[index] = _merge(splits[index], pair, merged)
            pairs.add(splits[index], index, counts[index])
    return learned


class _PairCounts:
    """How often two pieces are neighbours, and in which words."""

    def __init__(self) -> None:
        self._count: Counter[tuple[str, str]] = Counter()
        self._words: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        # Every count that a pair ever had; those that no longer hold are dropped when they come up.
        self._queue: list[tuple[int, tuple[str, str]]] = []

    def add(self, pieces: list[str], word: int, count: int) -> None:
        """Count the neighbours in a word; a negative ``count`` takes them back."""
        for pair in pairwise(pieces):
            self._count[pair] += count
            heapq.heappush(self._queue, (-self._count[pair], pair))
            if count > 0:
                self._words[pair].add(word)
            else:
                self._words[pair].discard(word)

    def most_frequent(self) -> tuple[str, str] | None:
        """The pair to merge next, of equal ones the first in the order of characters; None if none occurs twice."""
        while self._queue:
            count, pair = self._queue[0]
            if -count == self._count[pair]:
                return pair if -count > 1 else None
            heapq.heappop(self._queue)
        return None

    def words_with(self, pair: tuple[str, str]) -> list[int]:
        """Indices of the words in which a pair stands, ascending."""
        return sorted(self._words[pair])


def _merge(pieces: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    result: list[str] = []
    position = 0
    while position < len(pieces):
        if tuple(pieces[position : position + 2]) == pair:
            result.append(merged)
            position += 2
        else:
            result.append(pieces[position])
            position += 1
    return result

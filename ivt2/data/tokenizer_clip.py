"""Byte-level byte-pair encoding as CLIP's text encoder uses it, from its merges file or from a Hugging Face file."""

import gzip
import html
import json
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int64
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from torch import Tensor

from ivt2.batch import Vocabulary
from ivt2.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
"""Suffix of a piece that ends a word."""

_NUM_MERGES = 49408 - 2 * 256 - 2  # OpenAI's file holds more than its network has rows for
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_STRAIGHT = str.maketrans(
    dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)
_MAX_BYTES = 1 << 26
_REMEDY = "give CLIP's bpe_simple_vocab_16e6.txt.gz, or the tokenizer.json or merges.txt of a CLIP model"


class ClipTokenizer:
    """Captions to ids of a fixed length: start token, pieces, end token, then zeros.

    Text is cleaned (HTML entities, curly quotes, Unicode NFC, white space), lower-cased, split into words, single
    digits and runs of symbols, and each of these into the pieces that the merges build from its bytes. The end token
    stays when a text is cut. Special tokens that stand literally in a text are ordinary characters. Can be pickled.

    Args:
        vocab_file: OpenAI's ``bpe_simple_vocab_16e6.txt``, also gzipped; a ``merges.txt``; a ``tokenizer.json``; or a
            ``vocab.json`` with ``merges.txt`` beside it.
        max_length: length of every row, both special tokens included.

    Raises:
        InputError: if the file cannot be read or is no such vocabulary, or ``max_length`` leaves no room for text.

    Source: CLIP (arXiv:2103.00020); the reference's small text encoders use the ids of open_clip's ViT-B-16, which also
        repairs wrongly decoded text: that is left out here.
    """

    def __init__(self, vocab_file: str | Path, *, max_length: int = 77) -> None:
        if max_length < 3:
            raise InputError(f"max_length={max_length} leaves no room for text: use at least 3")
        pieces = _read_pieces(Path(vocab_file))
        self.max_length = max_length
        self.vocab_size = len(pieces.ids)
        self._start, self._end = pieces.ids[START], pieces.ids[END]
        self.vocabulary = Vocabulary(
            self.vocab_size, pad_id=0, unk_id=-1, cls_id=self._start, sep_id=self._end, mask_id=-1
        )
        self._tokenizer = Tokenizer(BPE(pieces.ids, pieces.merges, end_of_word_suffix=WORD_END))
        self._tokenizer.pre_tokenizer = PreTokenizers([
            Split(Regex(_WORDS), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ])

    def __call__(self, captions: Sequence[str]) -> tuple[Int64[Tensor, "M L"], Bool[Tensor, "M L"]]:
        """Encode captions.

        Returns:
            Token ids, and True where a token is real; padding has the id 0, which is also that of a character.
        """
        shape = (len(captions), self.max_length)
        input_ids = torch.zeros(shape, dtype=torch.int64)
        valid = torch.zeros(shape, dtype=torch.bool)
        for row, caption in enumerate(captions):
            pieces = self._tokenizer.encode(clean(caption), add_special_tokens=False).ids
            ids = [self._start, *pieces[: self.max_length - 2], self._end]
            input_ids[row, : len(ids)] = torch.tensor(ids)
            valid[row, : len(ids)] = True
        return input_ids, valid


def clean(text: str) -> str:
    """Resolve HTML entities twice, straighten quotes, compose characters, collapse white space, lower the case."""
    text = html.unescape(html.unescape(text)).translate(_STRAIGHT)
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


class _Pieces(NamedTuple):
    ids: dict[str, int]
    merges: list[tuple[str, str]]


def _read_pieces(file: Path) -> _Pieces:
    text = _read_text(file)
    if not text.lstrip().startswith("{"):
        return _from_merges(_split_merges(text, file), file)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"vocabulary {file} is not JSON ({error}): fetch it again") from error
    model = document.get("model")
    if isinstance(model, dict):
        return _from_tables(model.get("vocab"), model.get("merges"), file)
    beside = file.with_name("merges.txt")
    return _from_tables(document, _split_merges(_read_text(beside), beside), file)


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
        if data[:2] == b"\x1f\x8b":
            with gzip.open(file) as packed:
                data = packed.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise InputError(f"vocabulary {file} is larger than {_MAX_BYTES} bytes: {_REMEDY}")
        return data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"vocabulary {file} cannot be read ({type(error).__name__}): {_REMEDY}") from error


def _split_merges(text: str, file: Path) -> list[tuple[str, str]]:
    lines = text.removesuffix("\n").split("\n")
    first = 1 if "#version" in lines[0] else 0
    merges = []
    for number, line in enumerate(lines[first:][:_NUM_MERGES], start=first + 1):
        parts = line.removesuffix("\r").split(" ")
        if len(parts) != 2 or not all(parts):
            raise InputError(f"vocabulary {file} line {number} is not a pair of pieces: {_REMEDY}")
        merges.append((parts[0], parts[1]))
    return merges


def _from_merges(merges: list[tuple[str, str]], file: Path) -> _Pieces:
    """Ids as OpenAI numbers them: bytes, bytes that end a word, merged pieces in their order, start, end."""
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols), *(a + b for a, b in merges), START, END]
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise InputError(f"vocabulary {file} builds a piece twice: {_REMEDY}")
    return _checked(ids, merges, file)


def _from_tables(vocab: Any, merges: Any, file: Path) -> _Pieces:
    """Ids and merges that a Hugging Face file states; its merges are pairs or strings with a space."""
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise InputError(f"vocabulary {file} has no table of pieces and merges: {_REMEDY}")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    numbered = all(type(index) is int for index in vocab.values()) and set(vocab.values()) == set(range(len(vocab)))
    if not numbered or not all(map(_is_pair, pairs)):
        raise InputError(f"vocabulary {file} is damaged: {_REMEDY}")
    return _checked(vocab, pairs, file)


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(piece, str) for piece in pair)


def _checked(ids: Mapping[str, int], merges: Sequence[Sequence[str]], file: Path) -> _Pieces:
    symbols = _byte_symbols()
    needed = [START, END, *symbols, *(symbol + WORD_END for symbol in symbols)]
    needed += [piece for a, b in merges for piece in (a, b, a + b)]
    unknown = next((piece for piece in needed if piece not in ids), None)
    if unknown is not None:
        raise InputError(f"vocabulary {file} lacks the piece {unknown!r}: {_REMEDY}")
    if any("\ud800" <= letter <= "\udfff" for letter in set().union(*ids)):  # halves of characters, which JSON can hold
        raise InputError(f"vocabulary {file} has pieces that are no text: {_REMEDY}")
    return _Pieces(dict(ids), [(a, b) for a, b in merges])


def _byte_symbols() -> list[str]:
    """The character that stands for each byte, printable bytes first: they stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]

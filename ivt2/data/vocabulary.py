"""The tokenizer of a run: from a vocabulary file that is named, or from one trained on the captions of the shards."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivt2.data.annotations import captions_of
from ivt2.data.ledger import SampleError
from ivt2.data.shards import ShardSet
from ivt2.data.text import normalize_caption
from ivt2.data.tokenizer import WordPieceTokenizer, train_vocabulary
from ivt2.errors import InputError


def open_tokenizer(
    vocab_file: str | None, *, max_length: int, train_on: Mapping[str, str | Mapping[str, Any]], size: int, folder: str
) -> WordPieceTokenizer:
    """Tokenizer of the named vocabulary; without a name, of one trained on captions, which is kept and used again.

    Args:
        vocab_file: one WordPiece a line, such as the vocab.txt of bert-large-uncased; None trains one.
        max_length: tokens of a caption, longer ones are cut.
        train_on: sources whose captions a vocabulary is trained on: shard folders, or options with one as ``shards``.
        size: entries of a trained vocabulary, at most.
        folder: where trained vocabularies are kept, one for each content of the shards and size.

    Raises:
        InputError: the file, or a shard folder, cannot be used.
    """
    if vocab_file is not None:
        return WordPieceTokenizer(vocab_file, max_length=max_length)
    if not train_on:
        raise InputError(
            "datamodule.train names no shards: add them as +datamodule.train.<name>=<folder>; "
            "without training data name a vocabulary as datamodule.tokenizer.vocab_file=<file>"
        )
    shards = [ShardSet.open(_folder(name, source)) for name, source in train_on.items()]
    content = hashlib.sha256("".join(sorted(each.manifest_hash for each in shards)).encode()).hexdigest()
    file = Path(folder) / f"wordpiece-{size}-{content[:16]}.txt"
    if not file.exists():
        train_vocabulary(_captions(shards), size, file)
    return WordPieceTokenizer(file, max_length=max_length)


def _folder(name: str, source: str | Mapping[str, Any]) -> str:
    """The shard folder of a source."""
    folder = source if isinstance(source, str) else source.get("shards")
    if not isinstance(folder, str):
        raise InputError(f"datamodule.train.{name}: names no shards; add train.{name}.shards=<folder>")
    return folder


def _captions(shards: Sequence[ShardSet]) -> Iterator[str]:
    """All usable captions; the others are met again, and counted, in training."""
    for each in shards:
        for index in range(len(each)):
            try:
                captions = captions_of(each.read(index).members)
            except SampleError:
                continue
            yield from map(normalize_caption, captions)

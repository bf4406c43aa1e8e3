"""LLaMA's SentencePiece tokenizer with the prompt that InternVL-C and InternVideo2-CLIP put before every caption."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ivt2.batch import Vocabulary
from ivt2.errors import InputError

PREFIX = "summarize:"
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
PAD_ID = UNK_ID
"""Padding takes the id of the unknown piece, as the network was trained."""

_MAX_BYTES = 1 << 26


class LlamaTokenizer:
    """Captions to ids of a fixed length: start token, pieces of ``"summarize:" + caption``, end token, then zeros.

    The end token stays when a text is cut. Special tokens that stand literally in a text are ordinary characters. Can
    be pickled for workers.

    Args:
        vocab_file: SentencePiece model, such as the ``tokenizer.model`` of chinese_alpaca_lora_7b.
        max_length: length of every row, both special tokens included.

    Raises:
        InputError: if sentencepiece is not installed, the file cannot be read or is not LLaMA's kind of model, or
            ``max_length`` leaves no room for text.

    Source: InternVL-C (arXiv:2312.14238); reference multi_modality, LLaMA text encoder (spec stage2 section 6.2).
    """

    def __init__(self, vocab_file: str | Path, *, max_length: int = 80) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise InputError("LLaMA's tokenizer needs sentencepiece: pip install 'ivt2[chat]'") from error
        if max_length < 3:
            raise InputError(f"max_length={max_length} leaves no room for text: use at least 3")
        self.max_length = max_length
        self._model = SentencePieceProcessor()
        remedy = "give the tokenizer.model of chinese_alpaca_lora_7b"
        try:
            self._model.LoadFromSerializedProto(_read(vocab_file))
        except (OSError, RuntimeError) as error:
            raise InputError(f"vocabulary {vocab_file} cannot be read ({type(error).__name__}): {remedy}") from error
        special = (self._model.unk_id(), self._model.bos_id(), self._model.eos_id())
        if special != (UNK_ID, BOS_ID, EOS_ID):
            raise InputError(f"vocabulary {vocab_file} numbers its special pieces {special}, not 0, 1, 2: {remedy}")
        self.vocab_size: int = self._model.get_piece_size()
        self.vocabulary = Vocabulary(self.vocab_size, PAD_ID, UNK_ID, BOS_ID, EOS_ID, mask_id=-1)

    def __call__(self, captions: Sequence[str]) -> tuple[Int64[Tensor, "M L"], Bool[Tensor, "M L"]]:
        """Encode captions.

        Returns:
            Token ids, and True where the id is not 0: the text encoder reads the last of those.
        """
        input_ids = torch.full((len(captions), self.max_length), PAD_ID)
        for row, caption in enumerate(captions):
            pieces = self._model.encode(PREFIX + caption)
            ids = [BOS_ID, *pieces[: self.max_length - 2], EOS_ID]
            input_ids[row, : len(ids)] = torch.tensor(ids)
        return input_ids, input_ids > PAD_ID


def _read(file: str | Path) -> bytes:
    with Path(file).open("rb") as opened:
        data = opened.read(_MAX_BYTES + 1)
    if not 0 < len(data) <= _MAX_BYTES:  # the library takes an empty file for a model and complains at the first use
        raise OSError(f"{file} is empty or larger than {_MAX_BYTES} bytes")
    return data

import io
import pickle
import sys

import pytest
import torch

from ivt2.data.tokenizer_llama import LlamaTokenizer
from ivt2.errors import InputError

sentencepiece = pytest.importorskip("sentencepiece")

CAPTIONS = ["a cat runs over the grass", "the dog", "", "猫 </s> <s> <unk> ▁ x", "the red dog sleeps " * 20]


def train(**options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"summarize:{caption}" for caption in CAPTIONS[:2]] * 20),
        model_writer=model, vocab_size=290, model_type="bpe", byte_fallback=True, hard_vocab_limit=False,
        minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def model():
    return train()


@pytest.fixture
def file(tmp_path, model):
    (tmp_path / "tokenizer.model").write_bytes(model)
    return tmp_path / "tokenizer.model"


@pytest.mark.parametrize("max_length", [8, 80])
def test_rows_are_start_prompt_caption_end_and_zeros(file, model, max_length):
    judge = sentencepiece.SentencePieceProcessor(model_proto=model)
    input_ids, valid = LlamaTokenizer(file, max_length=max_length)(CAPTIONS)
    assert input_ids.dtype == torch.int64
    assert input_ids.shape == (len(CAPTIONS), max_length)
    for caption, row, flags in zip(CAPTIONS, input_ids.tolist(), valid.tolist(), strict=True):
        ids = [1, *judge.encode("summarize:" + caption)[: max_length - 2], 2]
        assert row == ids + [0] * (max_length - len(ids))
        assert flags == [index > 0 for index in row]


def test_special_pieces_in_a_text_are_characters(file):
    input_ids, _ = LlamaTokenizer(file)(["</s> <s>"])
    assert input_ids[0].tolist().count(1) == 1
    assert input_ids[0].tolist().count(2) == 1


def test_it_can_be_pickled(file):
    tokenizer = LlamaTokenizer(file)
    again = pickle.loads(pickle.dumps(tokenizer))
    file.unlink()
    assert again.vocab_size == tokenizer.vocab_size
    assert again.vocabulary == (again.vocab_size, 0, 0, 1, 2, -1)
    assert all(map(torch.equal, again(CAPTIONS), tokenizer(CAPTIONS)))


@pytest.mark.parametrize("content", [None, b"", b"no model " * 20])
def test_files_that_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "a.model").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.model cannot be read .*give the tokenizer\.model"):
        LlamaTokenizer(tmp_path / "a.model")


def test_models_of_another_kind_are_refused(tmp_path):
    (tmp_path / "a.model").write_bytes(train(pad_id=0, unk_id=3, bos_id=1, eos_id=2))
    with pytest.raises(InputError, match=r"numbers its special pieces \(3, 1, 2\)"):
        LlamaTokenizer(tmp_path / "a.model")


def test_arguments_and_the_package_are_checked(file, monkeypatch):
    with pytest.raises(InputError, match="max_length=2 leaves no room"):
        LlamaTokenizer(file, max_length=2)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"pip install 'ivt2\[chat\]'"):
        LlamaTokenizer(file)

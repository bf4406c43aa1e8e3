"""WordPiece ids with a tiny vocabulary, padded and cut to one length, without closing separator."""

import tempfile
from pathlib import Path

from ivt2.data.tokenizer import WordPieceTokenizer
from tests.golden.case import Case


def check(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(case.config["vocab"]) + "\n", encoding="utf-8")
        tokenizer = WordPieceTokenizer(file, max_length=case.config["max_len"])
    rows = case.json["rows"]
    assert [row["text"] for row in rows] == case.config["texts"]
    input_ids, valid = tokenizer(case.config["texts"])
    for row, ids, real in zip(rows, input_ids.tolist(), valid.int().tolist(), strict=True):
        assert set(row) == {"text", "tokens", "input_ids", "attention_mask"}
        assert tokenizer.tokenize(row["text"]) == row["tokens"], row["text"]
        assert ids == row["input_ids"], row["text"]
        assert real == row["attention_mask"], row["text"]

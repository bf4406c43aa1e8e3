import pytest

from ivt2.data import vocabulary
from ivt2.data.shards import ShardWriter
from ivt2.data.tokenizer import WordPieceTokenizer, train_vocabulary
from ivt2.data.vocabulary import open_tokenizer
from ivt2.errors import InputError


def write(folder, captions):
    """Shards of captions alone; None stands for a sample whose caption cannot be used."""
    with ShardWriter(folder, max_samples=2, max_bytes=1 << 20) as writer:
        for number, caption in enumerate(captions):
            writer.write(f"{number:03d}", {"json": {"caption": "?!" if caption is None else caption}})
    return str(folder)


@pytest.fixture
def sets(tmp_path):
    return {
        "cats": write(tmp_path / "cats", ["a cat sleeps", None, "A cat, a cat!"]),
        "dogs": write(tmp_path / "dogs", ["a dog runs", "the dog runs"]),
    }


def opened(folder, train_on, *, max_length=8, size=140, name="vocabularies"):
    return open_tokenizer(None, max_length=max_length, train_on=train_on, size=size, folder=str(folder / name))


def files(folder):
    return sorted((folder / "vocabularies").iterdir())


def test_a_named_file_is_used_and_nothing_is_trained(tmp_path, sets):
    file = tmp_path / "vocab.txt"
    train_vocabulary(["a cat"], 110, file)
    tokenizer = open_tokenizer(str(file), max_length=5, train_on=sets, size=140, folder=str(tmp_path / "vocabularies"))
    assert tokenizer.vocabulary.size == 110
    assert tokenizer(["a cat"])[0].shape == (1, 5)
    assert not (tmp_path / "vocabularies").exists()


def test_without_a_name_the_captions_of_all_shards_teach_it(tmp_path, sets):
    tokenizer = opened(tmp_path, sets)
    assert isinstance(tokenizer, WordPieceTokenizer)
    assert tokenizer.vocabulary.size == 140
    assert tokenizer(["a cat"])[0].shape == (1, 8)
    for word in ("cat", "dog", "runs"):
        assert tokenizer.tokenize(word) == [word]


def test_captions_are_learned_as_training_will_see_them(tmp_path, sets):
    """Training reads captions without punctuation; the vocabulary has no use for it."""
    opened(tmp_path, sets)
    pieces = files(tmp_path)[0].read_text().split("\n")
    assert "cat" in pieces
    assert not {",", "!", "?"} & set(pieces)


def test_a_trained_vocabulary_is_used_again(tmp_path, sets, monkeypatch):
    first = opened(tmp_path, sets)
    monkeypatch.setattr(vocabulary, "train_vocabulary", lambda *_: pytest.fail("trained again"))
    again = opened(tmp_path, {"other name": sets["dogs"], "cats": sets["cats"]}, max_length=4)
    assert again.vocabulary == first.vocabulary
    assert len(files(tmp_path)) == 1


def test_sources_with_options_are_read_like_plain_folders(tmp_path, sets, monkeypatch):
    first = opened(tmp_path, sets)
    monkeypatch.setattr(vocabulary, "train_vocabulary", lambda *_: pytest.fail("trained again"))
    options = {name: {"shards": folder, "medium": "video"} for name, folder in sets.items()}
    assert opened(tmp_path, options).vocabulary == first.vocabulary
    with pytest.raises(InputError, match=r"datamodule\.train\.cats: names no shards; add train\.cats\.shards="):
        opened(tmp_path, {"cats": {"medium": "video"}})


@pytest.mark.parametrize("change", ["size", "shards", "content"])
def test_other_content_or_size_is_another_vocabulary(tmp_path, sets, change):
    opened(tmp_path, sets)
    if change == "size":
        opened(tmp_path, sets, size=120)
    elif change == "shards":
        opened(tmp_path, {"cats": sets["cats"]})
    else:
        opened(tmp_path, {"cats": sets["cats"], "dogs": write(tmp_path / "more dogs", ["a dog barks", "the dog runs"])})
    first, second = files(tmp_path)
    assert first.read_text() != second.read_text()


def test_training_depends_on_the_captions_alone(tmp_path, sets):
    opened(tmp_path, sets)
    opened(tmp_path, sets, name="elsewhere")
    assert files(tmp_path)[0].read_bytes() == (tmp_path / "elsewhere" / files(tmp_path)[0].name).read_bytes()


@pytest.mark.parametrize(
    ("train_on", "message"),
    [({}, "datamodule.train names no shards"), ({"missing": "no/such/folder"}, "no/such/folder")],
)
def test_mistakes_are_named(tmp_path, train_on, message):
    with pytest.raises(InputError, match=message):
        opened(tmp_path, train_on)


def test_captions_without_a_word_are_refused(tmp_path):
    with pytest.raises(InputError, match="hold no word"):
        opened(tmp_path, {"none": write(tmp_path / "none", [None, None])})


def test_a_missing_file_is_named(tmp_path, sets):
    with pytest.raises(InputError, match=r"absent\.txt"):
        open_tokenizer(str(tmp_path / "absent.txt"), max_length=8, train_on=sets, size=140, folder=str(tmp_path))

import json

import pytest

from ivt2.checkpoint.zoo import RELEASES
from ivt2.cli import zoo
from tests.programs import run_main


@pytest.fixture
def show(monkeypatch, tmp_path, capsys):
    """Run the command in this process; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = run_main(zoo.main, ["zoo", *arguments], monkeypatch)
        return code, *capsys.readouterr()

    return run


def test_all_releases_have_a_row(show, tmp_path):
    code, out, _ = show()
    assert code == 0
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    cells = {row[0].strip(): [cell.strip() for cell in row] for row in rows if row[0].strip()}
    assert list(cells) == list(RELEASES)
    assert cells["internvideo2-1b-stage2"][1:9] == [
        "video, image, text", "4", "224", "512", "1.41 B", "1", "2.82 GB", "Apache-2.0, gated",
    ]  # fmt: skip
    assert cells["beats-iter3-as2m"][1:8] == ["audio", "-", "-", "768", "90.3 M", "1", "not stated"]
    assert out.splitlines()[-1].startswith("python -m ivt2.cli.zoo name=<name> tells where")
    assert not list(tmp_path.iterdir())


def test_one_release_in_full(show):
    code, out, _ = show("name=internvideo2-clip-s14")
    assert code == 0
    for part in RELEASES["internvideo2-clip-s14"].parts:
        assert f"{part.name}: {part.file}\n" in out
    assert "from https://huggingface.co/OpenGVLab/InternVideo2_distillation_models\n" in out
    assert "vocabulary (clip): tokenizer.json\n" in out
    assert out.rstrip().endswith("files.delta=<delta file> output=<folder>")


def test_json_for_programs(show):
    everything = json.loads(show("format=json")[1])
    assert [one["name"] for one in everything] == list(RELEASES)
    one = json.loads(show("format=json", "name=internvideo2-6b-audio-encoder")[1])
    assert one in everything
    assert one["parts"][0]["num_bytes"] == 361_325_972
    assert (one["num_frames"], one["num_mels"], one["vocabulary"]) == (None, 64, None)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("name=internvideo2-clip-7b", "internvideo2-clip-7b: no such release; did you mean internvideo2-clip-"),
        ("format=xml", "format: expected Literal['table', 'json'], got 'xml'"),
    ],
)
def test_mistakes_are_one_line(show, argument, expected):
    code, out, err = show(argument)
    assert code == 2
    assert out == ""
    assert expected in err
    assert len(err.splitlines()) == 1

import json

import pytest

from ivt2.cli import report
from ivt2.errors import InputError
from tests.programs import run_main


def test_scores_stand_under_the_data_they_were_measured_on():
    metrics = {"train/loss": 1.0, "test/didemo/t2v_r1": 50.0, "test/didemo/t2v_r5": 80.0, "epoch": 2.0}
    expected = {"train": {"loss": 1.0}, "test/didemo": {"t2v_r1": 50.0, "t2v_r5": 80.0}, "": {"epoch": 2.0}}
    assert report.scores(metrics) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "does not exist"), ("{", "is not JSON"), ("[]", "has no metrics"), ("{}", "no metrics")],
)
def test_what_cannot_be_read(tmp_path, text, message):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(InputError, match=message):
        report.read_result(tmp_path)


def test_the_command_prints_a_table_and_leaves_nothing(monkeypatch, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps({"metrics": {"test/synthetic/t2v_r1": 87.5}}))
    monkeypatch.chdir(tmp_path)
    assert run_main(report.main, ["report", "run_dir=run"], monkeypatch) == 0
    out = capsys.readouterr().out
    assert "test/synthetic" in out
    assert "t2v_r1" in out
    assert "87.5" in out
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["result.json", "run"]

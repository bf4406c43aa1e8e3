import json
import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.provenance import Provenance, config_hash
from ivt2.callbacks.results import Results, retrieval_table, write_json
from ivt2.checkpoint import fingerprint
from ivt2.metrics.retrieval import RetrievalResult, dual_softmax_metrics, retrieval_metrics


@pytest.fixture
def result():
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.7, 0.95]])
    clip_of_caption = torch.tensor([0, 0, 1])
    metrics = {
        "raw": retrieval_metrics(similarity, clip_of_caption),
        "dual_softmax": dual_softmax_metrics(similarity, clip_of_caption),
    }
    found = RetrievalResult(similarity, clip_of_caption, torch.tensor([0, 4]), metrics)
    found.add_reranked(similarity, similarity.T)
    return found


def _read(folder):
    return json.loads((folder / "result.json").read_text())


def _leaves(value):
    return [leaf for item in value.values() for leaf in _leaves(item)] if isinstance(value, dict) else [value]


@pytest.fixture
def retrieving(module, result):
    module.retrieval_results = {"tiny[x]": result}
    module.rerank_top_k = 16
    return module


def test_fit_then_test_fill_one_file(make_trainer, tmp_path, retrieving, data, capsys):
    module = retrieving
    data.manifest_hash = "f00"
    checkpoint = ModelCheckpoint(tmp_path / "c", every_n_train_steps=2)
    trainer = make_trainer(
        max_steps=4,
        enable_checkpointing=True,
        plugins=[DirectoryCheckpointIO()],
        callbacks=[Results(tmp_path / "run"), Provenance({"lr": 1}), checkpoint],
    )
    trainer.fit(module, data)
    after_fit = _read(tmp_path / "run")
    assert after_fit["metrics"]["train/loss"] == pytest.approx(module.losses[-1])
    assert after_fit["hashes"]["checkpoint"] == fingerprint(checkpoint.best_model_path)
    assert set(after_fit["seconds"]) == {"fit"}
    shown_after_fit = capsys.readouterr().out
    trainer.test(module, data, ckpt_path="best", verbose=False)
    whole = _read(tmp_path / "run")
    assert set(whole["metrics"]) == set(after_fit["metrics"]) | {"test/tiny/t2v_r1"}
    assert whole["hashes"] == {
        "checkpoint": fingerprint(checkpoint.best_model_path),
        "config": config_hash({"lr": 1}),
        "data": "f00",
    }
    assert whole["protocol"]["tiny[x]"] == {
        "num_clips": 2,
        "num_captions": 3,
        "scores": "raw, dual_softmax, reranked",
        "rerank_top_k": 16,
    }
    assert set(whole["seconds"]) == {"fit", "test"}
    assert set(whole) == {
        "metrics",
        "protocol",
        "hashes",
        "revision",
        "hardware",
        "versions",
        "seconds",
        "memory",
    }
    assert all(isinstance(leaf, int | float | str) for leaf in _leaves(whole))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result.json"]
    assert not shown_after_fit
    assert "tiny[x]" in capsys.readouterr().out


def test_weights_that_were_never_saved_are_called_so(make_trainer, tmp_path, module, data):
    trainer = make_trainer(callbacks=[Results(tmp_path)])
    trainer.validate(module, data, verbose=False)
    assert _read(tmp_path)["hashes"] == {"checkpoint": "weights in memory"}
    assert "val/loss" in _read(tmp_path)["metrics"]


def test_validation_inside_a_fit_writes_nothing_yet(make_trainer, tmp_path, module, data, monkeypatch):
    folder = tmp_path / "run"
    trainer = make_trainer(max_steps=2, val_check_interval=1, callbacks=[Results(folder)])
    monkeypatch.setattr(type(module), "on_train_end", lambda _: seen.append(folder.exists()))
    seen = []
    trainer.fit(module, data)
    assert seen == [False]
    assert (folder / "result.json").exists()


def test_file_is_an_artifact_of_the_run(make_trainer, mlflow_logger, tmp_path, module, data):
    logger = mlflow_logger()
    make_trainer(max_steps=1, logger=logger, callbacks=[Results(tmp_path)]).fit(module, data)
    (path,) = (tmp_path / "artifacts").rglob("result.json")
    assert path.read_text() == (tmp_path / "result.json").read_text()


def test_debug_runs_leave_no_result(make_trainer, tmp_path, module, data):
    make_trainer(fast_dev_run=True, callbacks=[Results(tmp_path / "run")]).fit(module, data)
    assert not (tmp_path / "run").exists()


def test_table(result):
    table = retrieval_table({"tiny": result})
    cells = [list(column.cells) for column in table.columns]
    assert [column.header for column in table.columns][:6] == [
        "dataset",
        "scores",
        "t2v R@1",
        "t2v R@5",
        "t2v R@10",
        "t2v median",
    ]
    assert cells[1] == ["raw cosine", "dual softmax", "re-ranked"]
    assert cells[2][0] == "100.0"
    assert len(cells) == 10


def test_table_has_a_row_for_each_view(result):
    both = RetrievalResult(
        result.similarity, result.clip_of_caption, result.index,
        {"raw": retrieval_metrics(result.similarity, result.clip_of_caption, view="av")}, "av",
    )  # fmt: skip
    result.add_view(both)
    cells = [list(column.cells) for column in retrieval_table({"tiny": result}).columns]
    assert cells[1] == ["raw cosine", "raw cosine, with sound", "dual softmax", "re-ranked"]
    assert cells[2][:2] == ["100.0"] * 2


def test_numbers_that_json_lacks_become_text(tmp_path):
    write_json(tmp_path / "a" / "r.json", {"x": math.nan, "y": {"z": -math.inf}, "n": 1.5})
    assert json.loads((tmp_path / "a" / "r.json").read_text()) == {"x": "nan", "y": {"z": "-inf"}, "n": 1.5}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "r.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "r.json", {"x": object()})
    assert json.loads((tmp_path / "r.json").read_text()) == {"x": 1}

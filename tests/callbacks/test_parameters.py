"""Exact numbers of parameters, in the table and in the file."""

import json
from types import SimpleNamespace

import pytest
from torch import nn

from ivt2.callbacks.parameters import Parameters, Part, count_parameters, parameters_table

NET = {"net": {"parameters": 65, "trainable": 65, "state": "trained"}}


def cells(parts):
    return list(zip(*(list(column.cells) for column in parameters_table(parts).columns), strict=True))


@pytest.fixture
def fit(make_trainer, tmp_path, data):
    """Train for a step, and return what was written."""

    def run(module):
        make_trainer(max_steps=1, callbacks=[Parameters(tmp_path / "run")]).fit(module, data)
        return json.loads((tmp_path / "run" / "parameters.json").read_text())

    return run


@pytest.fixture
def nested():
    """A task around a model, whose parts learn, learn in part, do not learn and have nothing to learn."""
    task, model = nn.Module(), nn.Module()
    model.left = nn.Linear(3, 2)
    model.right = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model.idle = nn.Dropout()
    model.head = nn.Linear(1200, 2, bias=False)
    model.scale = nn.Parameter(model.left.weight.new_ones(5))
    task.teacher, task.model, task.measure = nn.Linear(1, 1), model, nn.Linear(2, 1)
    task.teacher.requires_grad_(False)
    model.head.requires_grad_(False)
    model.right[0].requires_grad_(False)
    return task


def test_numbers_of_a_nested_module(nested):
    assert count_parameters(nested) == [
        Part("teacher", 2, 0), Part("model", 2423, 17), Part("model.left", 8, 8), Part("model.right", 10, 4),
        Part("model.head", 2400, 0), Part("measure", 3, 3),
    ]  # fmt: skip
    assert [part.state for part in count_parameters(nested)] == [
        "frozen", "partly", "trained", "partly", "frozen", "trained",
    ]  # fmt: skip


def test_a_shared_parameter_counts_once(nested):
    nested.model.right[1].weight = nested.model.right[0].weight
    assert count_parameters(nested)[3] == Part("model.right", 6, 0)


@pytest.mark.parametrize("model", [None, "a name"])
def test_a_model_that_is_no_module_has_no_rows(model):
    task = nn.Module()
    task.net, task.model = nn.Linear(2, 1), model
    assert count_parameters(task) == [Part("net", 3, 3)]


def test_fit_prints_and_writes_the_same(fit, module, nested, capsys):
    module.model = nested.model
    written = fit(module)
    assert list(written) == ["net", "model", "model.left", "model.right", "model.head"]
    assert {"net": written["net"]} == NET
    assert written["model"] == {"parameters": 2423, "trainable": 17, "state": "partly"}
    rows = cells(count_parameters(module))
    assert [[str(cell).replace(",", "") for cell in row] for row in rows] == [
        [name, str(part["parameters"]), str(part["trainable"]), part["state"]] for name, part in written.items()
    ]
    shown = capsys.readouterr().out
    assert all(str(cell) in shown for row in rows for cell in row)
    assert "2,423" in shown


def test_a_run_without_a_model_works(fit, module):
    assert fit(module) == NET


@pytest.mark.parametrize("entry", ["fit", "test"])
def test_a_trial_and_a_test_write_nothing(entry, make_trainer, tmp_path, module, data):
    trainer = make_trainer(callbacks=[Parameters(tmp_path / "run")], fast_dev_run=entry == "fit")
    getattr(trainer, entry)(module, data)
    assert not (tmp_path / "run").exists()


def test_only_the_first_rank_prints_and_writes(tmp_path, module, capsys):
    for rank in (1, 0):
        trainer = SimpleNamespace(is_global_zero=rank == 0, fast_dev_run=False)
        callback = Parameters(tmp_path / str(rank))
        callback.setup(trainer, module, "fit")
        callback.on_fit_start(trainer, module)
        assert ("parameters" in capsys.readouterr().out) == (rank == 0)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]

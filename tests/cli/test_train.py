"""train.py itself, with the real trainer, callback and logger files, on a line fitted to a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import run_main

TINY = Path(__file__).parent / "tiny"
PROGRAM = [str(TINY / "train_line.py"), "--config-dir", str(TINY / "conf"), "experiment=line"]

pytestmark = pytest.mark.slow  # importing Lightning


@pytest.fixture
def train(monkeypatch, tmp_path, capsys):
    """Run train.py in this process; returns (exit status, stderr)."""
    from ivt2.cli.targets import ALLOWED

    monkeypatch.syspath_prepend(str(TINY))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.setitem(ALLOWED, "fakes.", "fakes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    import train as program

    def run(*arguments):
        code = run_main(program.main, [*PROGRAM, "logger=none", "paths.run_dir=run", *arguments], monkeypatch)
        return code, capsys.readouterr().err

    return run


def value(tmp_path):
    return json.loads((tmp_path / "run" / "objective.json").read_text())["objective"]


def test_fit_and_test_return_the_objective_and_leave_a_run_folder(train, tmp_path):
    assert train()[0] == 0
    assert 0 < value(tmp_path) < 2
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["test/slope"] == pytest.approx(value(tmp_path))
    assert (tmp_path / "run" / "train.log").read_text()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_a_resumed_run_goes_on_where_it_stopped(train, tmp_path):
    assert train("trainer.max_epochs=4")[0] == 0
    whole = value(tmp_path)
    assert train("replace=true", "trainer.max_epochs=2")[0] == 0
    assert value(tmp_path) < whole
    assert train("ckpt_path=last", "trainer.max_epochs=4")[0] == 0
    assert value(tmp_path) == pytest.approx(whole, abs=1e-6)


def test_an_older_run_is_not_overwritten_by_accident(train, tmp_path):
    assert train()[0] == 0
    (tmp_path / "run" / "stale.txt").touch()
    code, err = train()
    assert code == 2
    assert "holds an older run; go on with ckpt_path=last, say replace=true" in err
    assert train("replace=true")[0] == 0
    assert not (tmp_path / "run" / "stale.txt").exists()


def test_evaluation_alone_uses_the_weights_it_is_given(train, tmp_path):
    assert train()[0] == 0
    trained = value(tmp_path)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    evaluated = tmp_path / "evaluated" / "objective.json"
    assert train("run=[test]", f"ckpt_path={checkpoint}", "paths.run_dir=evaluated")[0] == 0
    assert json.loads(evaluated.read_text())["objective"] == pytest.approx(trained)
    assert train("run=[test]", "module.start=0.5", "paths.run_dir=evaluated", "replace=true")[0] == 0
    assert json.loads(evaluated.read_text())["objective"] == 0.5


def test_after_fit_chooses_between_the_best_and_the_current_weights(train, tmp_path):
    best = ["callbacks.best.monitor=val/slope", "callbacks.best.mode=min", "callbacks.checkpoint=null"]
    assert train(*best, "after_fit=current", "trainer.max_epochs=4")[0] == 0
    current = value(tmp_path)
    assert train(*best, "after_fit=best", "trainer.max_epochs=4", "replace=true")[0] == 0
    assert value(tmp_path) < current


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["module.width=2"], "module: width=2 is not 1: a line has one slope"),
        (["trainer=single_gpu"], "trainer: No supported gpu backend found!"),
        (["objective=test/slop"], "objective: the run logged no 'test/slop'; did you mean 'test/slope'?"),
        (["ckpt_path=nowhere.ckpt"], "ckpt_path: nowhere.ckpt does not exist"),
        (["run=[fti]"], "run: expected Sequence[Literal['fit', 'validate', 'test', 'predict']], got ['fti']"),
        (["trainer.max_epochs=two"], "trainer.max_epochs: expected "),
        (["+trainer.max_epoch=2"], "has no argument 'max_epoch'; did you mean 'max_epochs'?"),
        (["~optimizer"], "module.optimizer: expected Callable[..., torch.optim.optimizer.Optimizer], got {'lr': 0.1}"),
    ],
)
def test_mistakes_are_one_line(train, arguments, expected):
    code, err = train(*arguments)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert "Traceback" not in err


def start(folder, *arguments):
    alone = {name: value for name, value in os.environ.items() if name not in {"LOCAL_RANK", "PL_GLOBAL_SEED"}}
    environment = alone | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    line = [sys.executable, *PROGRAM, *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.dist
def test_two_processes_share_one_run_folder_one_log_and_one_mlflow_run(tmp_path):
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    done = start(tmp_path, *ddp)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "line").iterdir()
    assert [path.name for path in folder.glob("*.log")] == ["train.log"]
    assert json.loads((folder / "result.json").read_text())["metrics"]["test/ranks"] == 2
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/outputs/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("line")
    assert len(client.search_runs([experiment.experiment_id])) == 1


@pytest.mark.dist
def test_the_runs_of_a_sweep_are_nested_under_one_parent(tmp_path):
    done = start(tmp_path, "-m", "module.width=1,2", "debug=smoke", "callbacks=none")
    assert done.returncode == 1, done.stderr
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/outputs/mlflow/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("line").experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 1  # the other job failed before it could log
    table = json.loads(next((tmp_path / "outputs" / "sweep").glob("*/sweep.json")).read_text())["jobs"]
    assert [job["exit_code"] for job in table] == [0, 2]
    assert parent.info.status == "FAILED"
    assert parent.data.metrics == {"failed_jobs": 1, "objective": table[0]["objective"]}
    assert [item.path for item in client.list_artifacts(parent.info.run_id)] == ["sweep.json"]

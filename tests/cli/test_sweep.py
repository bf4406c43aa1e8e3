import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ivt2.cli.door import CONF
from ivt2.cli.sweep import job_command, program
from ivt2.cli.tracking import mlflow_logger

PROBE = Path(__file__).parent / "probe" / "probe.py"
ROOT = Path(__file__).parents[2]


def hydra_of(tmp_path, settings=()):
    overrides = {"hydra": list(settings), "task": ["x=1", "colour=blue"]}
    return OmegaConf.create({"overrides": overrides, "runtime": {"output_dir": str(tmp_path / "it's, here")}})


def test_a_job_gets_its_overrides_and_none_of_the_sweeps(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    settings = [
        "hydra.mode=MULTIRUN",
        "hydra.sweep.dir=a",
        "hydra/launcher=basic",
        "+hydra.job.env_set.A=b",
        "hydra.verbose=true",
    ]
    line = job_command(program(), hydra_of(tmp_path, settings), ["--config-name", "other"])
    assert line[:2] == [sys.executable, str(Path("train.py").resolve())]
    assert line[2:] == [
        *("--config-name", "other", "x=1", "colour=blue", "+hydra.job.env_set.A=b", "hydra.verbose=true"),
        f"hydra.run.dir='{tmp_path}/it\\'s, here'",
        "hydra.mode=RUN",
    ]


def test_a_module_is_started_again_as_a_module(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", json.__spec__)
    assert program() == [sys.executable, "-m", "json"]


def sweep(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(PROBE), *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_job_is_a_process_and_a_failed_one_does_not_stop_the_others(tmp_path):
    done = sweep(tmp_path, "x=1,2", "-m", "network=null", "fail=null,input")
    assert done.returncode == 1
    table = json.loads((tmp_path / "outputs" / "sweep" / "sweep.json").read_text())["jobs"]
    assert [job["objective"] for job in table] == [1.0, None, 4.0, None]
    assert [job["exit_code"] for job in table] == [0, 2] * 2
    assert table[1]["overrides"] == ["x=1", "network=null", "fail=input"]
    assert done.stderr.count("clip.mp4: cannot be read; remove it") == 2
    assert "job 3 failed with exit status 2: x=2 network=null fail=input" in done.stdout
    folders = [Path(job["folder"]).relative_to(tmp_path) for job in table]
    assert folders == [Path("outputs/sweep", str(number)) for number in range(4)]
    log = (tmp_path / folders[0] / "probe.log").read_text()
    assert "torch imported: False" in log
    assert (tmp_path / folders[0] / "parent.txt").read_text() == "none"


@pytest.mark.slow
def test_a_sweep_can_be_asked_for_by_a_preset(tmp_path):
    done = sweep(tmp_path, "sweep=xs", "network=null")
    assert done.returncode == 0
    table = json.loads((tmp_path / "outputs" / "sweep" / "sweep.json").read_text())["jobs"]
    assert [job["objective"] for job in table] == [16.0, 25.0]


@pytest.mark.slow
def test_a_launcher_may_take_the_jobs_elsewhere_and_a_failed_one_is_named(tmp_path):
    late = "+hydra.launcher.setup=[sleep 2]"  # submitit makes the folder of a job after the job has started
    done = sweep(tmp_path, "-m", "x=1", "network=null", "fail=input,null", "hydra/launcher=submitit_local", late)
    assert done.returncode == 2, done.stderr
    last = "job x=1 network=null fail=input: ended with exit status 2; see the logs in ./outputs/sweep"
    assert done.stderr.splitlines()[-1] == last
    assert (tmp_path / "outputs" / "sweep" / "1" / "objective.json").exists()
    assert not (tmp_path / "outputs" / "sweep" / "0" / "objective.json").exists()


@pytest.mark.parametrize("root", sorted(file.stem for file in CONF.glob("*.yaml")))
def test_every_command_knows_where_its_sweeps_lie(root):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(root, overrides=["++name=any"], return_hydra_config=True)
    assert cfg.hydra.sweep.dir.removeprefix("./").startswith("outputs/sweep/")


def test_the_folder_of_the_database_is_made(tmp_path):
    uri = f"sqlite:///{tmp_path}/deep/mlflow.db"
    cfg = OmegaConf.create({"task": "t", "logger": {"m": {"tracking_uri": uri, "experiment_name": "${task}"}}})
    assert mlflow_logger(cfg) == {"tracking_uri": uri, "experiment_name": "t"}
    assert (tmp_path / "deep").is_dir()


def test_without_an_mlflow_logger_there_is_no_parent():
    assert mlflow_logger(OmegaConf.create({"logger": {}})) is None
    assert mlflow_logger(OmegaConf.create({})) is None

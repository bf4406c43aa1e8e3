import sys
import types

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from ivt2.callbacks.provenance import Provenance, config_hash, flatten

CONFIG = {"seed": 1, "module": {"lr": 1e-3, "betas": [0.9, 0.98]}, "run": ["fit"], "list": [{"a": 1}, 2], "none": None}


def test_flatten():
    assert dict(flatten(CONFIG)) == {
        "seed": "1",
        "module.lr": "0.001",
        "module.betas": "[0.9, 0.98]",
        "run": "['fit']",
        "list.0.a": "1",
        "list.1": "2",
        "none": "None",
    }
    assert dict(flatten({"empty": {}})) == {"empty": "{}"}


def test_hash_ignores_the_order_of_keys():
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def _run_of(logger):
    return logger.experiment.get_run(logger.run_id)


def test_a_run_is_recorded_once(make_trainer, mlflow_logger, module, data, tmp_path):
    logger = mlflow_logger()
    trainer = make_trainer(max_steps=2, logger=logger, callbacks=[Provenance(CONFIG, system_metrics_interval_s=None)])
    trainer.fit(module, data)
    trainer.test(module, data)
    run = _run_of(logger)
    assert run.data.params == dict(flatten(CONFIG))
    assert run.data.tags["config.sha256"] == config_hash(CONFIG)
    assert run.data.tags["version.torch"].startswith("2.")
    assert len(run.data.tags["mlflow.source.git.commit"]) in {7, 40}
    assert run.data.tags["git.dirty"] in {"yes", "no", "unknown"}
    assert int(run.data.tags["hardware.cpus"]) > 0
    assert run.info.status == "FINISHED"
    (path,) = (tmp_path / "artifacts").rglob("config.yaml")
    assert yaml.safe_load(path.read_text()) == CONFIG


def test_a_resumed_run_keeps_its_parameters(make_trainer, mlflow_logger, module, data):
    first = mlflow_logger()
    options = {"system_metrics_interval_s": None}
    make_trainer(max_steps=1, logger=first, callbacks=[Provenance(CONFIG, **options)]).fit(module, data)
    changed = CONFIG | {"seed": 2, "new": "x"}
    again = mlflow_logger(run_id=first.run_id)
    make_trainer(max_steps=1, logger=again, callbacks=[Provenance(changed, **options)]).fit(module, data)
    run = _run_of(again)
    assert run.data.params == dict(flatten(CONFIG)) | {"new": "x"}
    assert run.data.tags["resumed.seed"] == "2"
    assert [key for key in run.data.tags if key.startswith("resumed.")] == ["resumed.seed"]


def test_long_values_and_many_keys(make_trainer, mlflow_logger, module, data):
    logger = mlflow_logger()
    config = {"long": "x" * 3000} | {f"key{i}": i for i in range(250)} | {"odd:key*": 1}
    trainer = make_trainer(max_steps=1, logger=logger, callbacks=[Provenance(config, system_metrics_interval_s=None)])
    trainer.fit(module, data)
    params = _run_of(logger).data.params
    assert len(params) == 252
    assert params["odd_key_"] == "1"
    assert set(params["long"]) == {"x"}


@pytest.mark.parametrize("kind", ["csv", "none"])
def test_without_mlflow(make_trainer, module, data, tmp_path, kind):
    loggers = [CSVLogger(tmp_path, name="", version="csv")] if kind == "csv" else []
    make_trainer(max_steps=1, logger=loggers, callbacks=[Provenance(CONFIG)]).fit(module, data)
    recorded = list(tmp_path.rglob("hparams.yaml"))
    assert len(recorded) == len(loggers)
    assert all(yaml.safe_load(path.read_text())["module.lr"] == "0.001" for path in recorded)


def test_checkpoint_holds_the_configuration_and_the_run(make_trainer, mlflow_logger, module, data, tmp_path):
    logger = mlflow_logger()
    trainer = make_trainer(max_steps=1, logger=logger, callbacks=[Provenance(CONFIG, system_metrics_interval_s=None)])
    trainer.fit(module, data)
    checkpoint = {}
    trainer.callbacks[0].on_save_checkpoint(trainer, module, checkpoint)
    assert checkpoint == {"ivt2_config": CONFIG, "ivt2_mlflow_run": logger.run_id}


@pytest.fixture
def monitors(monkeypatch):
    """What was asked of each system metrics monitor."""
    made = []

    class Monitor:
        def __init__(self, run_id, *, sampling_interval, resume_logging, tracking_uri):
            self.calls = []
            made.append(((run_id, sampling_interval, resume_logging, tracking_uri), self.calls))

        def start(self):
            self.calls.append("start")

        def finish(self):
            self.calls.append("finish")

    stand_in = types.ModuleType("mlflow.system_metrics.system_metrics_monitor")
    stand_in.SystemMetricsMonitor = Monitor
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return made


@pytest.fixture
def fit(make_trainer, module, data):
    def run(logger, **options):
        trainer = make_trainer(max_steps=1, logger=logger, callbacks=[Provenance(CONFIG, **options)])
        trainer.fit(module, data)
        return trainer

    return run


def test_system_metrics_run_as_long_as_the_entry_point(fit, mlflow_logger, mlflow_uri, monitors):
    logger = mlflow_logger()
    trainer = fit(logger, system_metrics_interval_s=3.0)
    trainer.test(trainer.lightning_module, trainer.datamodule, verbose=False)
    assert [arguments for arguments, _ in monitors] == [(logger.run_id, 3.0, True, mlflow_uri)] * 2
    assert [calls for _, calls in monitors] == [["start", "finish"]] * 2


def test_system_metrics_stop_when_training_fails(fit, mlflow_logger, module, monitors, monkeypatch):
    monkeypatch.setattr(type(module), "training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(mlflow_logger())
    assert monitors[0][1] == ["start", "finish"]


def test_without_psutil_a_line_says_so(fit, mlflow_logger, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mlflow.system_metrics.system_metrics_monitor", None)
    fit(mlflow_logger())
    assert "no system metrics" in caplog.text

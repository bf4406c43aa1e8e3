"""The yaml of callbacks and loggers builds what it names."""

from pathlib import Path

import pytest
import yaml
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.provenance import Provenance
from ivt2.checkpoint import load_checkpoint

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def build(tmp_path, mlflow_uri):
    def make(group, option):
        mlflow_dir = str(Path(mlflow_uri.removeprefix("sqlite:///")).parent)
        config = {
            "name": "a run",
            "task": "stage2",
            "paths": {"root": str(tmp_path), "run_dir": str(tmp_path / "run"), "mlflow_dir": mlflow_dir},
            group: yaml.safe_load((CONF / group / f"{option}.yaml").read_text()),
        }
        return instantiate(OmegaConf.create(config)[group], _convert_="all")

    return make


def test_mlflow_lies_below_the_given_folder(build, mlflow_uri):
    (logger,) = build("logger", "mlflow").values()
    client, run_id = logger.experiment, logger.run_id
    assert client.get_experiment(logger.experiment_id).name == "stage2"
    assert client.get_run(run_id).info.run_name == "a run"
    store = Path(mlflow_uri.removeprefix("sqlite:///"))
    assert client.tracking_uri == mlflow_uri
    assert client.get_run(run_id).info.artifact_uri.startswith(str(store.parent / "artifacts" / "stage2"))
    assert store.exists()


def test_csv_lies_in_the_run_folder(build, tmp_path):
    (logger,) = build("logger", "csv").values()
    assert isinstance(logger, CSVLogger)
    assert Path(logger.log_dir) == tmp_path / "run" / "csv"


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_none_is_nothing(build, group):
    assert build(group, "none") == {}


@pytest.fixture
def run_default(build, make_trainer, module, data):
    def run(logger):
        callbacks = build("callbacks", "default")
        trainer = make_trainer(
            max_steps=3,
            enable_progress_bar=True,
            enable_checkpointing=True,
            plugins=[DirectoryCheckpointIO()],
            logger=[*build("logger", logger).values()],
            callbacks=[*callbacks.values(), Provenance({"lr": 1})],
        )
        trainer.fit(module, data)
        trainer.test(module, data, ckpt_path="best", verbose=False)
        return callbacks

    return run


@pytest.mark.parametrize("logger", ["csv", "none"])
def test_default_callbacks_work_together(run_default, tmp_path, logger):
    callbacks = run_default(logger)
    run = tmp_path / "run"
    assert (run / "result.json").exists()
    assert (run / "csv" / "metrics.csv").exists() == (logger == "csv")
    periods = [part.every_n_epochs for part in callbacks.values() if isinstance(part, ModelCheckpoint)]
    assert periods == [1, 0]  # Trainer.test(ckpt_path="best") asks the first one
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["epoch=000.ckpt", "last.ckpt"]
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["ivt2_config"] == {"lr": 1}

import pytest
import torch

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.ema import ExponentialMovingAverage
from ivt2.callbacks.final_weights import FinalWeights
from ivt2.callbacks.provenance import Provenance
from ivt2.checkpoint import load_checkpoint, load_weights, read_metadata
from ivt2.checkpoint.folder import CONFIG, FORMAT


@pytest.fixture
def fit(make_trainer, tmp_path, module, data):
    """Train for five steps; what is left in the folder, None where nothing is."""

    def run(*callbacks):
        final = FinalWeights(tmp_path / "weights")
        make_trainer(max_steps=5, callbacks=[final, *callbacks]).fit(module, data)
        return tmp_path / "weights" if (tmp_path / "weights").exists() else None

    return run


def test_whole_weights_that_nothing_averages_are_in_the_checkpoints(fit):
    assert fit() is None
    assert fit(ExponentialMovingAverage(0.7, evaluate=False)) is None


def test_averages_are_written_as_they_are_judged(fit, module):
    average = ExponentialMovingAverage(0.7)
    folder = fit(average, Provenance(config={"seed": 3}))
    trained = {name: value.clone() for name, value in module.state_dict().items()}
    stored = load_checkpoint(folder)["state_dict"]
    assert stored.keys() == trained.keys() == average._averages.keys()
    for name, value in stored.items():
        assert torch.equal(value, average._averages[name])
        assert not torch.equal(value, trained[name])
    assert read_metadata(folder)["global_step"] == 5
    assert FORMAT.read_json(folder / CONFIG) == {"seed": 3}


def test_they_are_evaluated_and_loaded_like_any_checkpoint(fit, make_trainer, module, data):
    folder = fit(ExponentialMovingAverage(0.7))
    other, trainer = type(module)(), make_trainer()
    load_weights(other, folder)
    expected = trainer.test(other, data, verbose=False)
    again = type(module)()
    assert (
        make_trainer(plugins=[DirectoryCheckpointIO()]).test(again, data, ckpt_path=folder, verbose=False) == expected
    )
    assert make_trainer().test(module, data, verbose=False) != expected

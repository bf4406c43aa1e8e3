import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ivt2.callbacks.checkpoint_io import WEIGHTS_KEY, DirectoryCheckpointIO
from ivt2.checkpoint import save_checkpoint
from ivt2.cli.train_config import build_all, check_architecture, checkpoint, replaced, value_of
from ivt2.errors import InputError


def test_build_all_keeps_order_and_leaves_out_nulls():
    node = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 2}
    group = OmegaConf.create({"b": node, "gone": None, "a": node | {"out_features": 3}})
    assert [layer.out_features for layer in build_all(group)] == [2, 3]
    assert build_all(OmegaConf.create({})) == []
    assert build_all(None) == []
    assert len(build_all(OmegaConf.create(node))) == 1


def test_a_checkpoint_by_its_path(tmp_path):
    for good in (None, str(tmp_path), "s3://runs/a.ckpt"):
        assert checkpoint(good, tmp_path, trains=True) == good
    for bad in ("best", str(tmp_path / "nothing.ckpt")):
        with pytest.raises(InputError, match=r"ckpt_path: .* does not exist; give a checkpoint, or 'last'"):
            checkpoint(bad, tmp_path, trains=True)


def test_nothing_goes_on_from_weights_alone(tmp_path):
    path = tmp_path / "weights"
    DirectoryCheckpointIO().save_checkpoint({"state_dict": torch.nn.Linear(2, 3).state_dict(), WEIGHTS_KEY: True}, path)
    assert checkpoint(str(path), tmp_path, trains=False) == str(path)
    with pytest.raises(InputError, match=r"weights holds weights alone; go on from one in its `checkpoints`"):
        checkpoint(str(path), tmp_path, trains=True)


def save(run_dir, name, linear):
    save_checkpoint(run_dir / "checkpoints" / name, {"state_dict": linear.state_dict()}, config=None, metadata={})
    return run_dir / "checkpoints" / name


def test_last_is_the_newest_checkpoint_that_verifies(tmp_path):
    linear = torch.nn.Linear(2, 3)
    older, newer = save(tmp_path, "b.ckpt", linear), save(tmp_path, "a.ckpt", linear)
    assert checkpoint("last", tmp_path, trains=True) == str(newer)
    (newer / "model.safetensors").write_bytes(b"torn")
    assert checkpoint("last", tmp_path, trains=True) == str(older)
    (older / "state.json").unlink()
    with pytest.raises(InputError, match=f"every checkpoint in {tmp_path}/checkpoints is damaged; restore one"):
        checkpoint("last", tmp_path, trains=True)


def test_last_where_nothing_was_saved(tmp_path):
    assert checkpoint("last", tmp_path, trains=True) is None
    with pytest.raises(InputError, match=r"holds no checkpoint; give the paths\.run_dir"):
        checkpoint("last", tmp_path, trains=False)


def test_last_of_a_strategy_with_folders_of_its_own_is_left_to_lightning(tmp_path):
    (tmp_path / "checkpoints" / "last.ckpt" / ".metadata").mkdir(parents=True)
    assert checkpoint("last", tmp_path, trains=True) == "last"


def test_weights_of_another_architecture_are_named_before_they_are_loaded(tmp_path):
    path = str(save(tmp_path, "a.ckpt", torch.nn.Linear(2, 3)))
    check_architecture(torch.nn.Linear(2, 3), path)
    check_architecture(torch.nn.Linear(2, 4), None)
    check_architecture(torch.nn.Linear(2, 4), str(tmp_path))
    with pytest.raises(InputError, match=r"0 missing; 0 unexpected; 2 of another shape \(weight \[3, 2\] here \[4,"):
        check_architecture(torch.nn.Linear(2, 4), path)
    with pytest.raises(InputError, match=r"1 missing \(0\.weight\); 2 unexpected \(bias, weight\)"):
        check_architecture(torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False)), path)


@pytest.mark.parametrize(("ckpt_path", "initial"), [(None, {"body": {"weights": "gone"}}), ("a.ckpt", None)])
def test_a_checkpoint_replaces_start_weights(ckpt_path, initial):
    given = {"_target_": "builtins.dict", "initial": {"body": {"weights": "gone"}}, "lr": 1.0}
    node = OmegaConf.create({"module": given}).module
    assert instantiate(node, _convert_="all", **replaced(node, ckpt_path)) == {"initial": initial, "lr": 1.0}
    assert replaced({"lr": 1.0}, ckpt_path) == {}


def test_value_of():
    metrics = {"val/loss": torch.tensor(0.5)}
    assert value_of(metrics, "val/loss") == 0.5
    assert value_of(metrics, None) is None
    with pytest.raises(InputError, match=r"no 'val/los'; did you mean 'val/loss'.; it logged: val/loss"):
        value_of(metrics, "val/los")

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ivt2.cli.train_config import build_all, checkpoint, value_of
from ivt2.errors import InputError


def test_build_all_keeps_order_and_leaves_out_nulls():
    node = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 2}
    group = OmegaConf.create({"b": node, "gone": None, "a": node | {"out_features": 3}})
    assert [layer.out_features for layer in build_all(group)] == [2, 3]
    assert build_all(OmegaConf.create({})) == []
    assert build_all(None) == []
    assert len(build_all(OmegaConf.create(node))) == 1


def test_checkpoint(tmp_path):
    for good in (None, "last", str(tmp_path)):
        assert checkpoint(good) == good
    with pytest.raises(InputError, match=r"ckpt_path: .*nothing\.ckpt does not exist"):
        checkpoint(str(Path(tmp_path, "nothing.ckpt")))


def test_value_of():
    metrics = {"val/loss": torch.tensor(0.5)}
    assert value_of(metrics, "val/loss") == 0.5
    assert value_of(metrics, None) is None
    with pytest.raises(InputError, match=r"no 'val/los'; did you mean 'val/loss'.; it logged: val/loss"):
        value_of(metrics, "val/los")

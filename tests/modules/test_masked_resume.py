"""Exact: masked learning that is resumed ends with the weights of the uninterrupted run."""

import pytest
import torch

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.random_state import RandomState
from ivt2.checkpoint import read_weights
from ivt2.data.transforms import MultiScaleCrop
from ivt2.datamodules.clips import ClipDataModule
from tests.datamodules.clip_sets import write_clips
from tests.datamodules.seen import checkpoints, trainer
from tests.modules.masked_case import distill, stage1, student

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:.*num_workers.*", "ignore:.*bottleneck.*", "ignore:.*LeafSpec.*", "ignore:.*dirpath.*"
    ),
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips") / "web", num=10, bad={3: {"mp4": b"", "txt": "broken"}})


def both_teachers():
    return stage1(student(drop_path=0.4), masks_per_clip=2)


def two_students():
    students = {"a": student(mae=None, drop_path=0.4), "b": student(mae=None, embed_dim=32, drop_path=0.2)}
    return distill(students)


def fit(make, num_frames, clips, folder, *, ckpt_path=None, torch_seed=0):
    """Five steps over two epochs; the generator starts elsewhere in a resumed run."""
    torch.manual_seed(torch_seed)
    module = make()
    losses = {}
    data = ClipDataModule(
        train={"web": clips},
        num_frames=num_frames,
        train_transforms=[MultiScaleCrop(12)],
        eval_transforms=[],
        global_batch_size=4,
        eval_batch_size=4,
        seed=7,
        budget=100,
        isolate=False,
    )
    module.log = lambda name, value, **_: losses.setdefault(name, []).append(float(value))
    run = trainer(
        folder,
        RandomState(),
        checkpoints(folder, every_n_train_steps=1),
        plugins=[DirectoryCheckpointIO()],
        max_steps=5,
        gradient_clip_val=1.0,
    )
    run.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module.state_dict(), losses


@pytest.mark.parametrize(("make", "num_frames"), [(both_teachers, 8), (two_students, 4)])
def test_resumed_training_is_that_without_a_break(make, num_frames, clips, tmp_path):
    whole, losses = fit(make, num_frames, clips, tmp_path / "whole")
    assert len(losses["train/loss"]) == 5
    path = tmp_path / "whole" / "step=2.ckpt"
    resumed, later = fit(make, num_frames, clips, tmp_path / "resumed", ckpt_path=path, torch_seed=1)
    assert later == {name: values[2:] for name, values in losses.items()}
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert set(read_weights(path)) == set(whole), "a checkpoint holds the students alone"
    assert not any("teacher" in name for name in whole)

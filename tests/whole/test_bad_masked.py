"""Mistakes about teachers and clips of masked learning through the whole door of train.py: one clear line."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ivt2.checkpoint.folder import save_checkpoint
from ivt2.cli.door import CONF
from tests.datamodules.clip_sets import write_clips

pytestmark = pytest.mark.slow  # importing Lightning, building a model for each case

SMALL = [
    "experiment=stage1_tiny",
    "datamodule=clips",
    "datamodule.num_frames=8",
    "+datamodule.train.web=clips",
    "datamodule.global_batch_size=4",
    "datamodule.num_workers=0",
    "logger=none",
    "paths.run_dir=run",
    "callbacks.figures=null",
    "callbacks.best=null",
    "callbacks.probe=null",
    "vision_encoder.image_size=32",
    "vision_encoder.depth=2",
    "module.clip_teacher.weights=null",
    "module.mae_teacher.weights=null",
    "trainer.max_epochs=1",
]


@pytest.fixture
def clips(tmp_path):
    return write_clips(tmp_path / "clips", num=8, max_samples=4)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["module.clip_teacher.weights=nowhere"], "teacher's weights=nowhere: does not exist; "),
        (["module.clip_teacher.encoder.embed_dim=96"], "clip_decoders give width 192, the clip_teacher 96: build them"),
        (["module.mae_teacher.encoder.image_size=40"], "image_size=40 is not a multiple of patch_size=16"),
        (["datamodule.num_frames=4"], "clips have 4 frames, student and teachers need 8: set the datamodule"),
        (["module.clip_teacher.weights=broken"], "clip_teacher: encoder.blocks.0.mlp.fc1.weight holds NaN or infinity"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(program, clips, tmp_path, changed, expected):
    if changed[0].endswith("=broken"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            network = instantiate(compose("train", overrides=SMALL).module.clip_teacher.encoder)()
        torch.nn.init.constant_(network.blocks[0].mlp.fc1.weight[2, 3], float("nan"))
        save_checkpoint(tmp_path / "broken", {"state_dict": network.state_dict()}, config=None, metadata={})
        changed = [*changed, "module.clip_teacher.prefix=''"]
    code, _, err = program(*SMALL, *changed)
    assert code == 2, err
    assert "Traceback" not in err
    assert expected in err.splitlines()[-1]


def test_a_batch_of_one_clip_that_shows_one_patch_is_enough(program, clips):
    """Four patches of a frame, of which int(4 * 0.999) are hidden."""
    few = ["datamodule.global_batch_size=1", "module.mask_ratio=0.999", "trainer.limit_train_batches=2"]
    code, _, err = program(*SMALL, *few)
    assert code == 0, err

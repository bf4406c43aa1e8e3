"""Training a masked autoencoder: loss, masks, groups, mistakes; and a teacher from what was saved."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.checkpoint.teacher import load_teacher
from ivt2.errors import InputError
from ivt2.models.masked_autoencoder import MaskedAutoencoder
from ivt2.models.teacher import VideoMAETeacher
from ivt2.models.videomae import VideoMAE
from ivt2.modules.masked_autoencoder import MaskedAutoencoderModule
from ivt2.ops.masking import random_masking, tube_masking
from ivt2.ops.random import Stream, uniform
from tests.modules.masked_case import SIZES, batch, gradients, recorded, shaken, step

PATCHES = 9
DEFAULTS = {
    "optimizer": partial(torch.optim.AdamW, lr=3e-3),
    "schedule": lambda optimizer, total_steps: torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=total_steps),
    "mask_ratio": 0.6,
}


def encoder():
    return VideoMAE(**SIZES, num_frames=8, embed_dim=24, depth=3)


def make(**options):
    model = MaskedAutoencoder(encoder(), decoder_dim=16, decoder_depth=1, decoder_num_heads=2, target_eps=0.1)
    return recorded(MaskedAutoencoderModule(shaken(model, 0), **DEFAULTS | options))


def test_loss_is_that_of_a_slow_loop():
    module, data = make(), batch(range(2))
    loss, logged = step(module, data)
    predicted, targets = (each(data["video"], module.last_masked) for each in (module.model, module.model.targets))
    squares = [
        (said - wanted) ** 2
        for clip in range(2)
        for place in range(5 * 4)
        for said, wanted in zip(predicted[clip, place].tolist(), targets[clip, place].tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    assert logged == {"loss": pytest.approx(loss.item())}


@pytest.mark.parametrize("masking", ["tube", "random"])
def test_masks_are_draws_of_the_samples_seed(masking):
    module, data = make(masking=masking), batch()
    state = torch.get_rng_state()
    step(module, data)
    assert torch.equal(torch.get_rng_state(), state)
    if masking == "tube":
        expected = tube_masking(uniform(data["seed"], PATCHES, Stream.AUTOENCODER_PATCHES), 0.6, 4)
    else:
        expected = random_masking(uniform(data["seed"], 4 * PATCHES, Stream.AUTOENCODER_PATCHES), 0.6)
    assert torch.equal(module.last_masked, expected)


def test_loss_is_a_mean_over_clips_however_they_are_batched():
    module = make()
    whole = step(module, batch())[0].item()
    parts = [step(module, batch(rows))[0].item() * len(rows) for rows in ((3, 0), (2,), (1,))]
    assert whole == pytest.approx(sum(parts) / 4, rel=1e-5)


def test_a_batch_without_clips_has_a_loss_of_zero_and_gradients_for_all():
    module = make()
    loss, _ = step(module, batch(()))
    loss.backward()
    assert loss.item() == 0
    found = gradients(module)
    assert set(found) == {name for name, _ in module.named_parameters()}
    assert not any(each.any() for each in found.values())


def test_loss_falls_on_a_repeated_batch():
    module, data = make(), batch(range(1))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    found = []
    for _ in range(30):
        loss, _ = step(module, data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.5 * found[0]


def test_matrices_alone_decay_and_the_schedule_goes_by_steps():
    module = make()
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)
    made = module.configure_optimizers()
    decaying = {id(each) for group in made["optimizer"].param_groups for each in group["params"]
                if group["weight_decay"]}  # fmt: skip
    assert decaying == {id(each) for each in module.parameters() if each.ndim > 1}
    assert made["lr_scheduler"]["interval"] == "step"
    assert made["lr_scheduler"]["scheduler"].total_iters == 10


def test_encode_gives_the_mean_of_the_tokens_of_a_whole_clip():
    module, video = make(), batch()["video"]
    found = module.encode(video)
    assert not found.requires_grad
    assert torch.equal(found, module.model.encoder(video, taps=(2,))[0].mean(dim=1))


def test_a_checkpoint_of_a_run_can_teach(tmp_path):
    module, data = make(), batch()
    before = module.model.encoder.state_dict()["blocks.0.mlp.fc1.weight"].clone()
    del module.log
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[DirectoryCheckpointIO()],
    )  # fmt: skip
    trainer.fit(module, DataLoader([data, data], batch_size=None))
    assert not torch.equal(module.model.encoder.state_dict()["blocks.0.mlp.fc1.weight"], before)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    teacher = load_teacher(
        partial(VideoMAETeacher, taps=(1, 2)), encoder, weights=str(tmp_path / "last.ckpt"), prefix="model.encoder.",
        dtype="float32",
    )  # fmt: skip
    expected = module.model.encoder.eval()(data["video"], taps=(1, 2))
    assert torch.equal(teacher.unnormalized(data["video"]).middle, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, "hides everything"),
        ({"mask_ratio": 0.1}, "mask_ratio=0.1 hides none of 9 patches"),
        ({"mask_ratio": 0.02, "masking": "random"}, "hides none of 36 patches"),
    ],
)
def test_masks_that_leave_nothing_to_do_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)

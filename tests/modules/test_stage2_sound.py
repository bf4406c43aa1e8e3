"""Stage 2 with sound under the trainer: all media, frozen parts, resume; start weights and forms of contrast."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.random_state import RandomState
from ivt2.checkpoint import read_weights
from ivt2.errors import InputError
from ivt2.losses.contrast import Contrast
from tests.datamodules.seen import checkpoints, trainer
from tests.modules.stage2_case import KINDS, VOCABULARY, batch, gradients, hearing, make, make_model, whole
from tests.modules.stage2_case import trainer as looked_at

MEDIA = ("video", "audio", "audio_video")
TERMS = {"vtm": 1.0, "amlm": 1.0, "avtc": 1.0}
WHOLE = {"initial": {"model": {"weights": "here"}}}


class Data(pl.LightningDataModule):
    """A step of each medium."""

    def __init__(self):
        super().__init__()
        self.vocabulary, self.media = VOCABULARY, {f"train.{medium}": medium for medium in MEDIA}
        self.caption_kinds = dict.fromkeys(self.media, KINDS)

    def train_dataloader(self):
        return torch.utils.data.DataLoader([whole(medium, rows=range(2)) for medium in MEDIA], batch_size=None)


def fit(folder, *, ckpt_path=None, torch_seed=0, epochs=2, **options):
    """Epochs of three steps; the generator starts elsewhere in a resumed run."""
    module = hearing(TERMS, drop=0.3, **options)
    losses = {}
    module.log = lambda name, value, **_: losses.setdefault(name, []).append(float(value))
    torch.manual_seed(torch_seed)
    run = trainer(
        folder, RandomState(), checkpoints(folder, every_n_epochs=1), plugins=[DirectoryCheckpointIO()],
        max_epochs=epochs, gradient_clip_val=1.0,
    )  # fmt: skip
    run.fit(module, Data(), ckpt_path=ckpt_path, weights_only=True)
    return module, losses, run


@pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*", "ignore:.*dirpath.*"
)
def test_resumed_training_is_that_without_a_break(tmp_path):
    frozen = {"frozen": ["audio_encoder"]}
    module, losses, run = fit(tmp_path / "whole", **frozen)
    path = tmp_path / "whole" / "step=3.ckpt"
    resumed, later, _ = fit(tmp_path / "resumed", ckpt_path=path, torch_seed=1, **frozen)
    assert {name: len(values) for name, values in losses.items()} == {
        "train/loss": 6, "train/loss_vtm": 4, "train/loss_amlm": 4, "train/loss_avtc": 2
    }  # fmt: skip
    assert later == {name: values[len(values) // 2 :] for name, values in losses.items()}
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in resumed.state_dict().items())
    assert set(read_weights(path)) == set(after), "a checkpoint does not hold the teacher"
    start = hearing(TERMS, drop=0.3).state_dict()
    moved = {name for name in after if not torch.equal(after[name], start[name])}
    assert {name.split(".")[1] for name in moved} >= {"vision_encoder", "audio_proj", "matching_head", "text_encoder"}
    assert not [name for name in moved if name.startswith("model.audio_encoder.")]
    listed = {id(each) for group in run.optimizers[0].param_groups for each in group["params"]}
    assert not listed & {id(each) for each in module.model.audio_encoder.parameters()}


def test_frozen_encoders_keep_nothing_and_drop_nothing():
    module = hearing(drop=0.5, frozen=["audio_encoder", "vision_encoder"]).train()
    first, second = (module.encode(whole()) for _ in range(2))
    for modality, encoder in (("audio", module.model.audio_encoder), ("video", module.model.vision_encoder)):
        assert not any(part.training for part in encoder.modules())
        assert torch.equal(first.tokens[modality], second.tokens[modality])
    assert not first.video.pooled.requires_grad
    assert not torch.equal(first.captions[None].tokens, second.captions[None].tokens)
    module.training_step(whole(), 0).backward()
    assert not [name for name in gradients(module) if name.startswith(("audio_encoder.", "vision_encoder."))]


@pytest.mark.parametrize(("stage", "read"), [("fit", 1), ("validate", 0), ("test", 0)])
def test_start_weights_are_read_for_training_alone(stage, read, monkeypatch):
    found = []
    monkeypatch.setattr("ivt2.modules.aligned.load_initial", lambda *given: found.append(given))
    module = make(**WHOLE)
    module._trainer = looked_at()
    module.setup(stage)
    assert found == [(module.model, WHOLE["initial"])] * read


def test_sigmoid_contrast_judges_every_pair():
    module = make(make_model(logit_bias=-3.0), terms={"vtc": 1.0}, contrast=Contrast(form="sigmoid"))
    data = batch(sample_id=[1, 2, 1, 3])
    encoded = module.encode(data)
    logits = encoded.features["video"] @ encoded.textual[None].T / module.model.temperature - 3.0
    expected = 0.0
    for row, own in enumerate([1, 2, 1, 3]):
        for column, other in enumerate([1, 2, 1, 3]):
            expected -= logsigmoid(logits[row, column] * (1 if own == other else -1)).item() / 4
    loss = module.training_step(data, 0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert module.model.logit_bias.grad.item() != 0


@pytest.mark.parametrize(
    ("bias", "contrast", "message"),
    [
        (None, {"form": "sigmoid"}, r"needs a learned bias: set module\.model\.logit_bias=-10"),
        (-10.0, {}, r"no use for module\.model\.logit_bias"),
    ],
)
def test_a_bias_must_fit_the_form_of_contrast(bias, contrast, message):
    with pytest.raises(InputError, match=message):
        make(make_model(logit_bias=bias), contrast=Contrast(**contrast))
    make(make_model(logit_bias=bias), contrast=Contrast(**contrast), terms={"mlm": 1.0})


def test_chunks_are_refused_where_they_change_the_result():
    with pytest.raises(InputError, match="encode_chunk=0: give the clips encoded at a time"):
        make(encode_chunk=0)
    model = make_model()
    model.vision_encoder.norm_of_batch = nn.BatchNorm1d(16)
    make(model).train().on_train_start()
    make(model, encode_chunk=2, frozen=["vision_encoder.norm_of_batch"]).train().on_train_start()
    with pytest.raises(InputError, match=r"encode_chunk=2: vision_encoder\.norm_of_batch normalises by .* batch"):
        make(model, encode_chunk=2).train().on_train_start()

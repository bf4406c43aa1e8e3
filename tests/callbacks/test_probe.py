import math
import random
import time

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from ivt2.callbacks.checkpoint_io import DirectoryCheckpointIO
from ivt2.callbacks.ema import ExponentialMovingAverage
from ivt2.callbacks.probe import Probe
from ivt2.callbacks.random_state import RandomState
from ivt2.callbacks.throughput import Throughput
from ivt2.errors import InputError
from ivt2.metrics.probing import LabelledFeatures, probe_metrics

METRICS = ["knn_top1", "linear_top1", "effective_rank", "mean_cosine", "linear_top1_gain"]


class Numbers(Probe):
    """Without figures, which take longest."""

    def _draw(self, trainer):
        pass


def clips(num, seed):
    """Clips of three classes, the last one without a label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num,), generator=generator)
    pixels = torch.randint(150, (num, 1, 3, 1, 2), generator=generator)
    pixels[torch.arange(num), 0, labels] += 30
    labels[-1] = -1
    return pixels.to(torch.uint8), labels


class Loader:
    """Batches of four in a strange order, one of them without clips; one clip comes twice. Draws from everything."""

    def __init__(self, num, seed):
        self.video, self.label = clips(num, seed)

    def __iter__(self):
        random.random(), np.random.rand(), torch.rand(())
        order = [*reversed(range(len(self.label))), 2]
        for rows in [order[:4], [], *(order[begin : begin + 4] for begin in range(4, len(order), 4))]:
            yield {"video": self.video[rows], "label": self.label[rows], "sample_id": 10 * torch.tensor(rows).long()}


@pytest.fixture
def data(data):
    data.probe_dataloaders = lambda: {"a set": (Loader(25, 0), Loader(31, 1))}
    return data


@pytest.fixture
def module(module):
    def encode(video):
        assert not module.training
        assert not torch.is_grad_enabled()
        return module.net[:2](video.flatten(1) / 255)

    module.encode = encode
    return module


def expected(module):
    """What a probe of the module as it is now must find."""
    module.eval()
    with torch.no_grad():
        sets = [
            LabelledFeatures(module.encode(video[:-1]), labels[:-1]) for video, labels in (clips(25, 0), clips(31, 1))
        ]
    return probe_metrics(*sets, k=3, temperature=0.1)


def probed(logger):
    """Steps and metrics of the first set's probes, by short names."""
    return [
        (step, {name.removeprefix("probe/a_set/"): value for name, value in metrics.items()})
        for step, metrics in logger.logged
        if any(name.startswith("probe/") for name in metrics)
    ]


def test_every_n_steps_and_at_both_ends_the_features_are_judged(make_trainer, tmp_path, module, data, memory_logger):
    before = expected(module)
    module.train()
    probe = Numbers(tmp_path, every_n_steps=2, k=3, temperature=0.1)
    trainer = make_trainer(max_steps=5, logger=memory_logger, callbacks=[probe])
    trainer.fit(module, data)
    found = probed(memory_logger)
    assert [step for step, _ in found] == [0, 2, 4, 5]
    assert all(list(values) == METRICS for _, values in found)
    assert found[0][1] == pytest.approx(before | {"linear_top1_gain": 0})
    after = expected(module)
    assert found[-1][1] == pytest.approx(after | {"linear_top1_gain": after["linear_top1"] - before["linear_top1"]})
    assert found[-1][1]["linear_top1_gain"] != 0
    assert found[1][1] != found[-1][1]
    for name, value in found[-1][1].items():
        assert float(trainer.callback_metrics[f"probe/a_set/{name}"]) == pytest.approx(value)


def test_steps_of_several_batches_are_probed_once(make_trainer, tmp_path, module, data, memory_logger):
    probe = Numbers(tmp_path, every_n_steps=2)
    trainer = make_trainer(
        max_steps=4, limit_val_batches=0, accumulate_grad_batches=2, logger=memory_logger, callbacks=[probe]
    )
    trainer.fit(module, data)
    assert [step for step, _ in probed(memory_logger)] == [0, 2, 4]


def test_training_does_not_notice(make_trainer, tmp_path, module, data):
    def fit(*callbacks):
        seed_everything(3, verbose=False)
        module.load_state_dict(start)
        module.losses.clear()
        module.train()
        module.still.eval()
        make_trainer(max_steps=6, callbacks=[RandomState(), *callbacks]).fit(module, data)
        return [*module.losses], {name: value.clone() for name, value in module.state_dict().items()}

    module.still = torch.nn.Dropout()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    step, modes = module.training_step, set()

    def training_step(batch, batch_idx):
        modes.add((module.net.training, module.still.training))
        return step(batch, batch_idx)

    module.training_step = training_step
    losses, weights = fit()
    assert len(set(losses)) == 6
    probed_losses, probed_weights = fit(Numbers(tmp_path, every_n_steps=2))
    assert probed_losses == losses
    assert all(torch.equal(probed_weights[name], value) for name, value in weights.items())
    assert modes == {(True, False)}


def test_a_resumed_run_goes_on_with_what_was_measured(make_trainer, tmp_path, module, data):
    def fit(steps, ckpt_path=None):
        probe = Numbers(tmp_path, every_n_steps=2)
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
        trainer = make_trainer(
            max_steps=steps,
            callbacks=[RandomState(), probe, saving],
            enable_checkpointing=True,
            plugins=[DirectoryCheckpointIO()],
        )
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return probe.state_dict()["curves"]

    whole = fit(7)
    resumed = fit(7, tmp_path / "step=4.ckpt")
    assert [step for step, _ in whole["probe/a_set/linear_top1"]] == [0, 2, 4, 6, 7]
    assert resumed == whole


class Weights(pl.Callback):
    """Of the start and after each step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)


def averaged(states, decay):
    average = states[0]
    for state in states[1:]:
        average = {name: decay * average[name] + (1 - decay) * state[name] for name in state}
    return average


@pytest.mark.parametrize("first", [ExponentialMovingAverage, Probe])
def test_averages_that_validation_uses_are_probed_and_the_weights_go_on(make_trainer, tmp_path, module, data, first):
    """Whichever callback stands first, also right after a checkpoint."""
    start = {name: value.clone() for name, value in module.state_dict().items()}

    def fit(steps, *further, ckpt_path=None):
        seed_everything(3, verbose=False)
        module.load_state_dict(start)
        weights = Weights()
        callbacks = [RandomState(), *sorted(further, key=lambda each: not isinstance(each, first)), weights]
        trainer = make_trainer(max_steps=steps, limit_val_batches=0, callbacks=callbacks)
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=False)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return weights.states

    plain = fit(5)
    fit(4, ExponentialMovingAverage(0.5))
    probe = Numbers(tmp_path, every_n_steps=4, k=3, temperature=0.1)
    resumed = fit(5, ExponentialMovingAverage(0.5), probe, ckpt_path=tmp_path / "4.ckpt")
    for found, wanted in zip(resumed, plain[4:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    for metric in METRICS[:-1]:
        curve = probe.state_dict()["curves"][f"probe/a_set/{metric}"]
        for step, value in curve:
            module.load_state_dict(averaged(plain[: step + 1], 0.5))
            assert value == pytest.approx(expected(module)[metric], rel=1e-4)
        assert [step for step, _ in curve] == [4, 5]
    module.load_state_dict(plain[5])
    assert value != pytest.approx(expected(module)["mean_cosine"], rel=1e-4)


def test_weights_are_probed_where_averages_are_only_kept(make_trainer, tmp_path, module, data, memory_logger):
    callbacks = [ExponentialMovingAverage(0.5, evaluate=False), Numbers(tmp_path, k=3, temperature=0.1)]
    make_trainer(max_steps=2, limit_val_batches=0, logger=memory_logger, callbacks=callbacks).fit(module, data)
    values = probed(memory_logger)[-1][1]
    del values["linear_top1_gain"]
    assert values == pytest.approx(expected(module))


def test_a_run_that_was_not_probed_from_the_start_has_no_gain(make_trainer, tmp_path, module, data, memory_logger):
    first = make_trainer(max_steps=4)
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    probe = Numbers(tmp_path, every_n_steps=4)
    make_trainer(max_steps=5, logger=memory_logger, callbacks=[probe]).fit(
        module, data, ckpt_path=tmp_path / "last.ckpt", weights_only=False
    )
    found = probed(memory_logger)
    assert [step for step, _ in found] == [4, 5]
    assert all(list(values) == METRICS[:-1] for _, values in found)


def test_a_callback_used_twice_starts_anew(make_trainer, tmp_path, module, data):
    probe = Numbers(tmp_path)
    for _ in range(2):
        make_trainer(max_steps=1, callbacks=[probe]).fit(module, data)
    assert [step for step, _ in probe.state_dict()["curves"]["probe/a_set/linear_top1"]] == [0, 1]


def test_several_students_are_probed_by_name_from_one_reading(make_trainer, tmp_path, module, data, memory_logger):
    asked, loaded = [], []
    read = data.probe_dataloaders

    def encode(video, student):
        asked.append(student)
        return video.flatten(1).float() * (-1.0 if student == "b" else 1.0) + (student == "b")

    module.encode, module.named_students = encode, lambda: {"s 14": module.net, "b": module.net}
    data.probe_dataloaders = lambda: loaded.append(1) or read()
    make_trainer(max_steps=1, logger=memory_logger, callbacks=[Numbers(tmp_path)]).fit(module, data)
    (_, found), _ = probed(memory_logger)
    assert list(found) == [f"{student}/{name}" for student in ("s_14", "b") for name in METRICS]
    assert found["s_14/mean_cosine"] != found["b/mean_cosine"]
    assert set(asked) == {"s 14", "b"}
    assert len(loaded) == 2


def test_features_that_are_no_numbers_do_not_stop_training(make_trainer, tmp_path, module, data, memory_logger):
    module.encode = lambda video: torch.full((len(video), 2), math.nan)
    make_trainer(max_steps=1, logger=memory_logger, callbacks=[Numbers(tmp_path)]).fit(module, data)
    assert len(module.losses) == 1
    assert all(math.isnan(value) for _, values in probed(memory_logger) for value in values.values())


def test_encoding_runs_in_the_precision_of_the_trainer(make_trainer, tmp_path, module, data):
    seen = []
    encode = module.encode
    module.encode = lambda video: seen.append(encode(video)) or seen[-1]
    trainer = make_trainer(max_steps=1, precision="bf16-mixed", limit_val_batches=0, callbacks=[Numbers(tmp_path)])
    trainer.fit(module, data)
    assert {features.dtype for features in seen} == {torch.bfloat16}


def test_probing_counts_neither_as_a_step_nor_as_waiting(make_trainer, tmp_path, module, data, memory_logger):
    read = data.probe_dataloaders
    data.probe_dataloaders = lambda: time.sleep(0.2) or read()
    callbacks = [Throughput(), Numbers(tmp_path, every_n_steps=1)]
    make_trainer(max_steps=3, limit_val_batches=0, logger=memory_logger, callbacks=callbacks).fit(module, data)
    spent = [
        metrics["perf/step_s"] / (1 - metrics["perf/data_wait_ratio"])
        for _, metrics in memory_logger.logged
        if "perf/step_s" in metrics
    ]
    assert len(spent) == 3
    assert min(spent[1:]) < 0.2  # the second and third wait for what probing the step before took


def test_figures_of_probes_and_of_layers(make_trainer, tmp_path, module, data):
    step = module.training_step

    def training_step(batch, batch_idx):
        module.log_dict({"train/cosine_clip/3": 0.1, "train/s14/cosine_mae/final": 0.2})
        return step(batch, batch_idx)

    module.training_step = training_step
    probe = Probe(tmp_path)
    make_trainer(max_steps=2, limit_val_batches=0, callbacks=[probe]).fit(module, data)
    names = sorted(path.relative_to(tmp_path / "figures").as_posix() for path in tmp_path.rglob("*.png"))
    assert names == ["cosines.png", "probe/a_set.png"]
    curves = probe.state_dict()["curves"]
    assert curves["train/cosine_clip/3"] == [(2, pytest.approx(0.1))]
    assert curves["train/s14/cosine_mae/final"] == [(2, pytest.approx(0.2))]
    assert "train/loss" not in curves


def test_nothing_to_probe_is_said_and_stops_nothing(make_trainer, tmp_path, module, data, memory_logger):
    data.probe_dataloaders = dict
    with pytest.warns(UserWarning, match="names no labelled sets"):
        make_trainer(max_steps=1, logger=memory_logger, callbacks=[Probe(tmp_path)]).fit(module, data)
    assert probed(memory_logger) == []
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(("part", "clips_left"), [("train", slice(0)), ("test", slice(-1, None))])
def test_a_set_without_usable_clips_is_refused(make_trainer, tmp_path, module, data, *, part, clips_left):
    loaders = {"train": Loader(5, 0), "test": Loader(5, 1)}
    used = loaders[part]
    used.video, used.label = used.video[clips_left], used.label[clips_left]
    loaders[part] = [{"video": used.video, "label": used.label, "sample_id": torch.arange(len(used.label))}]
    data.probe_dataloaders = lambda: {"hmdb": (loaders["train"], loaders["test"])}
    with pytest.raises(InputError, match=rf"datamodule\.probe\.hmdb\.{part}: no clip could be read"):
        make_trainer(max_steps=1, callbacks=[Probe(tmp_path)]).fit(module, data)
    assert module.losses == []


@pytest.mark.parametrize(
    ("without", "named"), [("data", "TinyData has no probe_dataloaders"), ("module", "TinyModule has no encode")]
)
def test_what_cannot_be_probed_is_refused_before_training(make_trainer, tmp_path, module, data, *, without, named):
    if without == "data":
        del data.probe_dataloaders
    else:
        del module.encode
    with pytest.raises(InputError, match=named):
        make_trainer(max_steps=1, callbacks=[Probe(tmp_path)]).fit(module, data)
    make_trainer(callbacks=[Probe(tmp_path)]).test(module, data, verbose=False)


@pytest.mark.parametrize(("argument", "value"), [("every_n_steps", 0), ("k", 0), ("temperature", 0.0)])
def test_arguments_out_of_range(tmp_path, argument, value):
    with pytest.raises(InputError, match=rf"callbacks\.probe\.{argument}={value}"):
        Probe(tmp_path, **{argument: value})

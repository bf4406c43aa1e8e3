"""Distillation: several students of one teacher pass, each as if it were alone."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy

from ivt2.errors import InputError
from ivt2.models.stage1 import Branch
from ivt2.ops.masking import visible_indices
from tests.modules.masked_case import batch, distill, gradients, step, student, teacher_of_clips, teacher_of_frames

MLP = Branch(teacher_dim=32, num_layers=2, interval=2.0, decoder="mlp", final_dim=10)
CLIP_NORM = 0.05


def learners():
    """Of different widths, depths, taps and decoders."""
    return {
        "s": student(mae=None, seed=4),
        "b": student(MLP, mae=None, seed=5, embed_dim=32, depth=4, num_heads=4),
    }


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return batch(range(2 * index, 2 * index + 2), num_frames=4)


def fit(students):
    """Weights of each student after three clipped steps of the Trainer."""
    module = distill(students, weights={"clip_middle": 1.0, "clip_final": 0.5}, masks_per_clip=2)
    del module.log
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=CLIP_NORM, gradient_clip_algorithm="norm",
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(Data(), batch_size=None))
    return {name: each.state_dict() for name, each in module.students.items()}


def test_each_student_trains_as_if_it_were_alone():
    together = fit(learners())
    for name, network in learners().items():
        start = {key: each.clone() for key, each in network.state_dict().items()}
        alone = fit({name: network})[name]
        torch.testing.assert_close(together[name], alone, rtol=0, atol=1e-6)
        assert any((alone[key] - start[key]).abs().max() > 1e-3 for key in start)


def test_students_share_one_pass_of_the_teacher_and_the_masks(monkeypatch):
    module, data = distill(learners()), batch(num_frames=4)
    asked, shown = [], []

    def listen(network, method, heard):
        original = getattr(network, method)

        def heard_first(*given, **named):
            heard.append([*given, *named.values()][-1])
            return original(*given, **named)

        monkeypatch.setattr(network, method, heard_first)

    listen(module.targets._teachers["clip"], "unnormalized", asked)
    for each in module.students.values():
        listen(each, "decode", shown)
    step(module, data)
    assert len(asked) == 1
    assert torch.equal(asked[0], data["video"])
    assert torch.equal(*shown)
    assert torch.equal(shown[0], visible_indices(module.last_masked))
    alone = distill({"b": learners()["b"]})
    step(alone, data)
    assert torch.equal(alone.last_masked, module.last_masked)


def test_losses_add_up_and_are_logged_by_name():
    data = batch(num_frames=4)
    loss, logged = step(distill(learners()), data)
    alone = {name: step(distill({name: network}), data)[1] for name, network in learners().items()}
    expected = {
        f"{name}/{key}": pytest.approx(value, rel=1e-5) for name, each in alone.items() for key, value in each.items()
    }
    assert loss.item() == pytest.approx(sum(each["loss"] for each in alone.values()), rel=1e-5)
    assert logged == expected | {"loss": pytest.approx(loss.item())}
    assert {"s/cosine_clip/1", "b/cosine_clip/1", "b/cosine_clip/3", "b/cosine_clip/final"} <= set(logged)


def test_each_student_has_groups_of_its_own():
    module = distill(learners())
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)
    groups = module.configure_optimizers()["optimizer"].param_groups
    for name, network in module.students.items():
        own = [group for group in groups if group["name"].startswith(f"{name}/")]
        assert {group["name"] for group in own} == {f"{name}/decay", f"{name}/no_decay"}
        assert {id(each) for group in own for each in group["params"]} == set(map(id, network.parameters()))
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))


def clipped(**options):
    module = distill(learners())
    sum((each.square().sum() for each in module.parameters()), torch.zeros(())).backward()
    before = gradients(module)
    module._trainer = SimpleNamespace(strategy=options.pop("strategy", SingleDeviceStrategy("cpu")))
    called = []
    module.clip_gradients = lambda *given, **named: called.append((given, named))
    module.configure_gradient_clipping(None, **options)
    return before, gradients(module), called


@pytest.mark.parametrize("algorithm", [None, "norm"])
def test_gradients_are_clipped_student_by_student(algorithm):
    before, after, _ = clipped(gradient_clip_val=1.0, gradient_clip_algorithm=algorithm)
    for name in ("s", "b"):
        own = [each for each in before if each.startswith(f"students.{name}.")]
        length = torch.cat([before[each].flatten() for each in own]).norm()
        assert length > 1
        for each in own:
            torch.testing.assert_close(after[each], before[each] / length, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": None},
        {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
        {"gradient_clip_val": 1.0, "strategy": FSDPStrategy.__new__(FSDPStrategy)},
    ],
)
def test_other_ways_of_clipping_are_left_to_lightning(options):
    before, after, called = clipped(**options)
    assert len(called) == 1
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_encode_names_a_student():
    module, video = distill(learners()), batch(num_frames=4)["video"]
    for name in ("s", "b"):
        expected = module.students[name].eval().encode_video(video)
        assert torch.equal(module.encode(video, student=name), expected)
    assert torch.equal(module.encode(video), module.encode(video, student="s"))


@pytest.mark.parametrize("num", [0, 1])
def test_smallest_batches_work(num):
    module = distill(learners())
    loss, _ = step(module, batch(range(num), num_frames=4))
    loss.backward()
    assert loss.isfinite()
    assert (loss.item() == 0) == (num == 0)
    assert all(each.isfinite().all() for each in gradients(module).values())


def test_losses_of_all_students_fall_on_a_repeated_batch():
    module, data, found = distill(learners()), batch(range(1), num_frames=4), []
    optimizer = torch.optim.AdamW(module.optimizer_groups(), lr=1e-2)
    for _ in range(20):
        loss, logged = step(module, data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(logged)
    for name in ("s/loss_clip_middle", "s/loss_clip_final", "b/loss_clip_middle", "b/loss_clip_final"):
        assert found[-1][name] < 0.5 * found[0][name], name


def test_teacher_of_frames_may_teach_too():
    _, logged = step(distill(teacher=teacher_of_frames()), batch(num_frames=4))
    assert {name for name in logged if "cosine" not in name} == {"loss", "loss_clip_middle", "loss_clip_final"}


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"distillation has no teacher: set module\.teacher"):
        type(distill())({"s": student(mae=None)}, None, weights={}, optimizer=None, schedule=None)
    with pytest.raises(InputError, match="names without dots"):
        distill({"s.14": student(mae=None)})
    with pytest.raises(InputError, match="student 'b': num_frames, tubelet_size and patches"):
        distill({"s": student(mae=None), "b": student(mae=None, num_frames=8)})
    with pytest.raises(InputError, match="student 'b': clip_decoders give width 30"):
        distill({"s": student(mae=None), "b": student(Branch(30, 2, final_dim=10), mae=None)})
    with pytest.raises(InputError, match="num_frames=4"):
        distill(teacher=teacher_of_clips(8))

"""Masked pre-training: frames, masks, targets, terms, views, mistakes, ranks."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from ivt2.errors import InputError
from ivt2.models.stage1 import Branch
from ivt2.ops.masking import attention_masking, gather_tokens, random_masking, tube_masking
from ivt2.ops.random import Stream, uniform
from ivt2.ops.whitening import whiten
from tests.modules.masked_case import (
    CLIP,
    MAE,
    WEIGHTS,
    batch,
    gradients,
    stage1,
    step,
    student,
    teacher_of_clips,
    teacher_of_frames,
    teacher_of_tubelets,
)
from tests.modules.masked_ranks import SHARES
from tests.ops.launch import run_ranks

PATCHES = 9
"""Patches of a frame; a student sees 4 frames of it."""
COSINES = {"cosine_clip/1", "cosine_clip/2", "cosine_clip/final", *(f"cosine_mae/{block}" for block in range(3))}


def asked(module, role):
    """Clips that a teacher is given; listens until the module is gone."""
    teacher, given = module.targets._teachers[role], []
    original = teacher.unnormalized
    teacher.unnormalized = lambda video: (given.append(video), original(video))[1]
    return given


def test_loss_is_that_of_a_slow_loop():
    """Every token of every layer by itself, its targets taken from whole normalised features."""
    module, data = stage1(), batch(range(2))
    video = data["video"]
    with torch.no_grad():
        features = module.student(video[:, ::2], module.targets(video, data["seed"]).masked)
        clip, mae = teacher_of_frames()(video[:, ::2]), teacher_of_tubelets()(video)
    _, logged = step(module, data)
    squares = {"clip_middle": [], "clip_final": [], "mae": []}
    for row in range(2):
        visible = [patch for patch in range(4 * PATCHES) if not module.last_masked[row, patch]]
        squares["clip_final"].append((features.clip_final[row] - clip.final[row]).square().sum())
        for layer in range(2):
            for place, token in enumerate([0, *(patch + 1 for patch in visible)]):
                difference = features.clip_middle[layer, row, place] - clip.middle[layer, row, token]
                squares["clip_middle"].append(difference.square().sum())
        for layer in range(3):
            for place, patch in enumerate(visible):
                squares["mae"].append((features.mae[layer, row, place] - mae.middle[layer, row, patch]).square().sum())
    for term, each in squares.items():
        assert logged[f"loss_{term}"] == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    assert logged["loss"] == pytest.approx(sum(logged[f"loss_{term}"] for term in squares), rel=1e-5)
    assert set(logged) == {"loss", *(f"loss_{term}" for term in squares), *COSINES}
    mean = sum(logged[f"cosine_mae/{block}"] for block in range(3)) / 3
    assert logged["loss_mae"] == pytest.approx(2 - 2 * mean, rel=1e-5)


def test_student_and_teacher_of_frames_see_the_first_frame_of_each_tubelet(monkeypatch):
    module, data = stage1(), batch()
    seen = {role: asked(module, role) for role in ("clip", "mae")}
    given = []
    original = module.student.decode
    monkeypatch.setattr(
        module.student, "decode", lambda *each, **named: (given.append(each), original(*each, **named))[1]
    )
    step(module, data)
    video = data["video"]
    assert torch.equal(seen["mae"][0], video)
    assert torch.equal(seen["clip"][0], video[:, [0, 2, 4, 6]])
    assert torch.equal(given[0][0], video[:, [0, 2, 4, 6]])


@pytest.mark.parametrize("role", ["clip", "mae"])
def test_targets_belong_to_the_frames_that_the_student_sees(role):
    """A change in frames 2j and 2j + 1 alone reaches targets of the student's frame j alone."""
    teachers = {"clip": teacher_of_frames(), "mae": teacher_of_tubelets()}
    for block in teachers["mae"].encoder.blocks:  # attention would carry the change on
        block.attn.proj.weight.zero_()
        block.attn.proj.bias.zero_()
    module = stage1(clip_teacher=teachers["clip"], mae_teacher=teachers["mae"], masking="tube")
    data = batch(range(1))
    changed = data["video"].clone()
    changed[:, 4:6] = 255 - changed[:, 4:6]
    first, second = (module.targets(video, data["seed"]).said[role].middle for video in (data["video"], changed))
    num_prefix = teachers[role].num_prefix
    moved = (first != second).any(dim=-1)[:, 0, num_prefix:].unflatten(1, (4, -1))
    assert moved[:, 2].all()
    assert not moved[:, [0, 1, 3]].any()


def test_without_a_teacher_of_tubelets_every_frame_counts():
    module = stage1(mae_teacher=None)
    seen = asked(module, "clip")
    _, logged = step(module, batch(num_frames=4))
    assert seen[0].shape[1] == 4
    assert set(logged) == {"loss", "loss_clip_middle", "loss_clip_final", *(each for each in COSINES if "clip" in each)}


def test_without_the_first_teacher_the_student_learns_from_the_other():
    module = stage1(student(clip=None), clip_teacher=None, masking="random")
    loss, logged = step(module, batch())
    loss.backward()
    assert set(logged) == {"loss", "loss_mae", *(each for each in COSINES if "mae" in each)}
    assert all(name.startswith(("student.encoder", "student.mae_decoders")) for name in gradients(module))


@pytest.mark.parametrize("clip_teacher", [teacher_of_frames, teacher_of_clips])
@pytest.mark.parametrize("masking", ["attention", "tube", "random"])
def test_masks_are_draws_of_the_samples_seed(masking, clip_teacher):
    """In each frame by itself where the teacher looks at frames: 9 - int(0.6 * 9) = 4 patches of each are visible."""
    module, data = stage1(clip_teacher=clip_teacher(), masking=masking), batch()
    step(module, data)
    masked = module.last_masked
    noise = uniform(data["seed"], 4 * PATCHES, Stream.TEACHER_PATCHES)
    if masking == "tube":
        expected = tube_masking(noise[:, :PATCHES], 0.6, 4)
    elif masking == "random":
        expected = random_masking(noise, 0.6)
    else:
        attention = clip_teacher()(data["video"][:, ::2]).attention
        shape = (4, 4, PATCHES) if clip_teacher is teacher_of_frames else (4, 4 * PATCHES)
        expected = attention_masking(attention.view(shape), -torch.log1p(-noise).view(shape), 0.6)
    assert torch.equal(masked, expected)
    visible = (~masked).view(4, 4, PATCHES).sum(dim=2)
    if masking == "random" or (masking == "attention" and clip_teacher is teacher_of_clips):
        assert visible.sum(dim=1).tolist() == [4 * PATCHES - int(0.6 * 4 * PATCHES)] * 4
        assert len(set(visible.flatten().tolist())) > 1
    else:
        assert (visible == 4).all()
    assert len({tuple(row.tolist()) for row in masked}) == 4


def test_attention_masks_follow_the_attention():
    """What the teacher looks at almost alone is visible in every draw; uniform attention shows each patch alike."""
    teacher = teacher_of_frames()
    original = teacher.unnormalized
    attention = torch.full((4 * 64, PATCHES), 1e-9)
    attention[:, [1, 5, 6, 8]] = 0.25
    teacher.unnormalized = lambda video: original(video)._replace(attention=attention)
    module = stage1(clip_teacher=teacher, mae_teacher=None)
    data = batch(range(64), num_frames=4)
    visible = ~module.targets(data["video"], data["seed"]).masked.view(64, 4, PATCHES)
    assert visible[..., [1, 5, 6, 8]].all()
    attention.fill_(0.1)
    shown = (~module.targets(data["video"], data["seed"]).masked).view(256, PATCHES).float().mean(dim=0)
    # 256 draws of probability 4/9: the standard deviation is 0.031.
    assert (shown - 4 / 9).abs().max() < 4 * 0.031


def test_masks_and_loss_do_not_depend_on_how_samples_are_batched():
    module = stage1(masks_per_clip=2)
    whole, _ = step(module, batch())
    masks, losses = [], []
    for rows in ((2, 0), (3,), (1,)):
        loss, _ = step(module, batch(rows))
        masks += zip(rows, module.last_masked, strict=True)
        losses.append(loss.item() * len(rows))
    step(module, batch())
    assert torch.equal(torch.stack([mask for _, mask in sorted(masks, key=lambda each: each[0])]), module.last_masked)
    assert whole.item() == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_a_step_does_not_touch_the_global_generator():
    module = stage1()
    before = torch.get_rng_state()
    first = step(module, batch())[1]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert step(module, batch())[1] == first


def test_targets_are_as_if_whole_features_were_normalised_before():
    module, data = stage1(), batch()
    targets = module.targets(data["video"], data["seed"])
    for role, teacher, video in (
        ("clip", teacher_of_frames(), data["video"][:, ::2]),
        ("mae", teacher_of_tubelets(), data["video"]),
    ):
        whole = teacher(video)
        torch.testing.assert_close(targets.said[role].middle, whole.visible(targets.masked).middle, rtol=0, atol=1e-7)
        if whole.final is not None:
            torch.testing.assert_close(targets.said[role].final, normalize(whole.final, dim=-1), rtol=0, atol=1e-6)


def test_views_of_a_clip_share_one_pass_of_the_teachers(monkeypatch):
    module, data = stage1(masks_per_clip=3), batch(range(2))
    seen = {role: asked(module, role) for role in ("clip", "mae")}
    loss, _ = step(module, data)
    assert [len(video) for given in seen.values() for video in given] == [2, 2]
    targets = module.targets(data["video"], data["seed"])
    masks = targets.masked.view(3, 2, -1)
    assert len({tuple(row.tolist()) for row in masks.flatten(0, 1)}) == 6
    assert torch.equal(module.last_masked, masks[0])
    # The loss is the mean over views, each of which is a step of its own.
    alone = []
    for mask in masks:
        single = stage1()
        monkeypatch.setattr(single.targets, "_draw", lambda *_, mask=mask: mask.unsqueeze(0))
        alone.append(step(single, data)[0].item())
    assert loss.item() == pytest.approx(sum(alone) / 3, rel=1e-5)
    plain = stage1()
    assert step(plain, data)[0].item() == pytest.approx(alone[0], rel=1e-6)
    assert torch.equal(plain.last_masked, masks[0])


def test_tokens_of_a_teacher_are_whitened_on_request_and_nothing_else_changes():
    plain, whitened = stage1(), stage1(whiten=["mae"])
    data = batch()
    before, after = (module.targets(data["video"], data["seed"]) for module in (plain, whitened))
    assert torch.equal(after.masked, before.masked)
    assert torch.equal(after.said["clip"].middle, before.said["clip"].middle)
    layers = teacher_of_tubelets().unnormalized(data["video"]).middle
    for found, layer in zip(after.said["mae"].middle, layers, strict=True):
        wanted = gather_tokens(whiten(layer.float()), after.visible)
        torch.testing.assert_close(found, normalize(wanted, dim=-1))


def test_weights_multiply_and_terms_without_weight_are_not_computed():
    _, each = step(stage1(), batch())
    module = stage1(weights={"clip_middle": 0.5, "mae": 0.0})
    seen = {role: module.targets._teachers.get(role) for role in ("clip", "mae")}
    loss, logged = step(module, batch(num_frames=4) | {"video": batch()["video"][:, ::2]})
    assert seen["mae"] is None
    assert set(logged) == {"loss", "loss_clip_middle", "cosine_clip/1", "cosine_clip/2"}
    assert logged["loss_clip_middle"] == pytest.approx(each["loss_clip_middle"], rel=1e-5)
    assert loss.item() == pytest.approx(0.5 * each["loss_clip_middle"], rel=1e-5)
    _, logged = step(stage1(weights={"mae": 2.0}), batch())
    assert logged["loss"] == pytest.approx(2 * each["loss_mae"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "kept", "silent"),
    [
        ({}, {"clip_decoders", "mae_decoders"}, set()),
        ({"mae_teacher": None}, {"clip_decoders"}, set()),
        ({"weights": {"clip_final": 1.0}}, {"clip_decoders"}, {"student.clip_decoders"}),
        ({"weights": WEIGHTS | {"clip_middle": 0.0, "clip_final": 0.0}}, {"mae_decoders"}, {"student.encoder"}),
    ],
)
def test_decoders_that_no_term_needs_are_taken_off_the_student(options, kept, silent):
    """Of those that are kept, tokens without a term have no gradient, nor has a pooling without one."""
    module = stage1(**options)
    assert {name for name, _ in module.student.named_children()} == {"encoder", *kept}
    step(module, batch(num_frames=module.targets.num_frames))[0].backward()
    without = {name for name, each in module.named_parameters() if each.grad is None}
    assert {".".join(name.split(".")[:2]) for name in without} == silent
    assert all("clip_projector" in name or "decoders.pos_embed" in name or ".decoders." in name for name in without)


def test_teachers_are_frozen_and_no_part_of_what_is_saved_or_trained():
    teachers = {"clip_teacher": teacher_of_frames(drop_path=0.9), "mae_teacher": teacher_of_tubelets()}
    before = {role: {name: each.clone() for name, each in teacher.state_dict().items()}
              for role, teacher in teachers.items()}  # fmt: skip
    module = stage1(**teachers).train()
    assert all(name.startswith("student.") for name in module.state_dict())
    module.load_state_dict(stage1().state_dict())
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)
    optimizer = module.configure_optimizers()["optimizer"]
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == set(map(id, module.student.parameters()))
    first, _ = step(module, batch())
    first.backward()
    optimizer.step()
    module.student.load_state_dict(stage1().student.state_dict())
    assert step(module, batch())[0].item() == first.item()  # stochastic depth of a teacher would make it differ
    for role, teacher in teachers.items():
        assert not any(each.training for each in teacher.modules())
        assert all(each.grad is None and not each.requires_grad for each in teacher.parameters())
        torch.testing.assert_close(teacher.state_dict(), before[role], rtol=0, atol=0)


def test_teachers_keep_their_own_number_format():
    teachers = {"clip_teacher": teacher_of_frames().bfloat16(), "mae_teacher": teacher_of_tubelets().bfloat16()}
    module = stage1(**teachers)
    assert {each.dtype for teacher in module.targets._teachers.values() for each in teacher.parameters()} == {
        torch.bfloat16
    }
    _, logged = step(module, batch())
    assert logged["loss"] == pytest.approx(step(stage1(), batch())[1]["loss"], rel=0.02)
    exact = stage1()
    data = batch()
    expected = exact.targets(data["video"], data["seed"]).said["clip"].middle
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = exact.targets(data["video"], data["seed"]).said["clip"].middle
    assert torch.equal(found, expected)


def test_a_teacher_in_float8_proves_itself_in_the_first_step():
    modules = [stage1(clip_teacher=teacher_of_frames().set_format("float8", min_cosine=least)) for least in (0.9, 1.0)]
    for module in modules:
        module.setup("fit")
        module.on_fit_start()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second = (step(modules[0], batch())[1]["loss"] for _ in range(2))
        with pytest.raises(InputError, match=r"InternVLTeacher says something else in float8: .* than min_cosine=1.0:"):
            step(modules[1], batch())
    assert first == second == pytest.approx(step(stage1(), batch())[1]["loss"], rel=0.05)
    kept = {name: each.dtype for name, each in modules[0].targets._teachers["clip"].encoder.state_dict().items()}
    assert kept["blocks.0.mlp.fc1.weight"] == torch.float8_e4m3fn
    assert kept["blocks.0.norm1.weight"] == kept["patch_embed.proj.weight"] == torch.bfloat16


@pytest.mark.parametrize("num", [0, 1])
def test_smallest_batches_have_a_finite_loss_and_gradients(num):
    module = stage1(masks_per_clip=2)
    loss, logged = step(module, batch(range(num)))
    loss.backward()
    assert all(torch.tensor(value).isfinite() for value in logged.values())
    assert set(gradients(module)) == {name for name, _ in module.named_parameters()}
    assert all(each.isfinite().all() for each in gradients(module).values())
    if num == 0:
        assert set(logged.values()) == {0.0}
        assert not any(each.any() for each in gradients(module).values())


def test_teacher_of_another_resolution_gets_resized_frames():
    sizes = {"image_size": 18, "patch_size": 6}
    module = stage1(clip_teacher=teacher_of_frames(**sizes), mae_teacher=teacher_of_tubelets(**sizes))
    assert torch.isfinite(step(module, batch())[0])


def test_loss_falls_on_a_repeated_batch():
    module, found = stage1(), []
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    data = batch(range(1))
    for _ in range(20):
        loss, logged = step(module, data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(logged)
    for name in ("loss", *(f"loss_{term}" for term in WEIGHTS)):
        assert found[-1][name] < 0.5 * found[0][name], name


@pytest.mark.parametrize(("num_frames", "seen"), [(8, slice(None, None, 2)), (4, slice(None))])
def test_encode_gives_the_mean_patch_token_of_a_whole_clip(num_frames, seen):
    module = stage1(student(drop_path=0.5)).train()
    video = batch(num_frames=num_frames)["video"]
    found = module.encode(video)
    assert module.student.training
    assert not found.requires_grad
    encoder = module.student.encoder.eval()
    whole = encoder(video[:, seen], taps=[encoder.depth - 1])
    patches = whole.intermediates[0].unbind(1)[1:]
    assert len(patches) == encoder.num_patches(4)
    torch.testing.assert_close(found, sum(patches) / len(patches))


NO_NORM = student()
NO_NORM.clip_decoders.decoders[0].normalize = False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_teacher": None, "mae_teacher": None}, "no teacher: set module.clip_teacher"),
        ({"clip_teacher": None}, "masking=attention needs a clip_teacher"),
        ({"mae_teacher": None, "whiten": ["mae"]}, r"whiten=\['mae'\]: name some of the teachers that are asked, clip"),
        ({"clip_teacher": teacher_of_tubelets()}, "masking=attention needs a clip_teacher that has attention"),
        ({"weights": {}, "masking": "tube"}, "no teacher is left"),
        ({"weights": {"clip_final": 0.0}}, "no term of a given teacher"),
        ({"weights": {"clip": 1.0}}, "name some of clip_middle, clip_final, mae"),
        ({"weights": {"mae": -1.0}}, "numbers from 0 on"),
        ({"mask_ratio": 1.0}, "hides everything"),
        ({"masks_per_clip": 0}, "masks_per_clip=0"),
        ({"learner": student(mae=None)}, "mae_decoders are missing: add them, or set weights.mae=0"),
        ({"learner": student(clip=Branch(teacher_dim=30, num_layers=2, final_dim=10))}, "give width 30, .* 32"),
        ({"learner": student(clip=Branch(teacher_dim=32, num_layers=2, final_dim=9))}, "give width 9, .* 10"),
        ({"learner": student(clip=Branch(teacher_dim=32, num_layers=2))}, "no pooled vector .* weights.clip_final=0"),
        ({"learner": student(clip=Branch(teacher_dim=32, num_layers=3, final_dim=10))}, "are 3 for 2 taps"),
        ({"learner": student(mae=Branch(teacher_dim=24, num_layers=3))}, "build them with cls_token=false"),
        ({"learner": NO_NORM}, "normalize=true"),
        ({"clip_teacher": teacher_of_frames(image_size=16)}, "clip_teacher: cuts a frame into 4 x 4 .* 3 x 3"),
        ({"mae_teacher": teacher_of_tubelets(16)}, r"8 positions in time, the student 4: .* num_frames=8"),
        ({"learner": student(clip=CLIP, tubelet_size=2), "mae_teacher": teacher_of_tubelets(6, tubelet_size=3)},
         "student: tubelets of 2 frames do not divide those of 3"),
    ],
)  # fmt: skip
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        stage1(**options)


def test_teacher_whose_resolution_is_no_multiple_of_its_patch_is_refused():
    with pytest.raises(InputError, match="image_size=14 is not a multiple of patch_size=4"):
        teacher_of_frames(image_size=14)


@pytest.mark.parametrize("num_frames", [4, 7, 16])
def test_other_numbers_of_frames_are_refused(num_frames):
    with pytest.raises(InputError, match=f"clips have {num_frames} frames, student and teachers need 8"):
        step(stage1(), batch(num_frames=num_frames))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_teacher_with_broken_weights_is_refused_at_the_start(value):
    teacher = teacher_of_tubelets()
    module = stage1(mae_teacher=teacher)
    module.setup("fit")
    teacher.encoder.blocks[1].mlp.fc1.weight[0, 0] = value
    module.setup("test")
    with pytest.raises(InputError, match=r"mae_teacher: encoder\.blocks\.1\.mlp\.fc1\.weight holds NaN or infinity"):
        module.setup("fit")


def test_teachers_move_with_the_module():
    module = stage1()
    module.to("meta")
    module.on_fit_start()
    assert all(each.is_meta for teacher in module.targets._teachers.values() for each in teacher.parameters())


def test_branch_is_checked():
    with pytest.raises(InputError, match=r"taps=\[0, 1\] are not num_layers=3 blocks"):
        Branch(teacher_dim=4, num_layers=3, taps=(0, 1))
    assert student(Branch(teacher_dim=4, num_layers=2, taps=(0, 2)), MAE).clip_taps == (0, 2)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found."""
    return run_ranks(Path(__file__).with_name("masked_ranks.py"), tmp_path_factory.mktemp("ranks"))


@pytest.mark.dist
@pytest.mark.parametrize("name", SHARES)
def test_ranks_together_take_the_step_of_one_process(ranks, name):
    module = stage1(masks_per_clip=2)
    loss, logged = step(module, batch([row for share in SHARES[name] for row in share]))
    loss.backward()
    masks = torch.cat([found[name]["masked"] for found in ranks])
    assert torch.equal(masks, module.last_masked)
    for found in ranks:
        assert found[name]["logged"] == pytest.approx(logged, rel=1e-5, abs=1e-6)
        torch.testing.assert_close(found[name]["gradients"], gradients(module), rtol=1e-4, atol=1e-6)

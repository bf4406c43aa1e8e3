"""One optimisation step of pre-training and one of distillation, from a video with twice the student's frames."""

from typing import NamedTuple

import torch
from torch import Tensor

from ivt2.losses.feature_alignment import feature_alignment_loss
from ivt2.models.stage1 import Stage1Student, StudentFeatures
from ivt2.models.teacher import TeacherFeatures
from ivt2.ops.masking import attention_masking
from ivt2.optim.parameter_groups import parameter_groups
from tests.golden.case import Case
from tests.golden.internvideo2 import PUBLISHED, load_student, rename_student, student_gradient_norms
from tests.golden.teachers import build_internvideo2, build_internvl, build_videomae

EPS = 1e-6
WITHOUT_INFLUENCE = ("clip_projector.norm1_k.bias", "clip_projector.cross_attn.k_bias")


class Targets(NamedTuple):
    """What the teachers say about visible tokens, and the mask of the hidden patches."""

    masked: Tensor
    clip: TeacherFeatures
    mae: TeacherFeatures | None


def check(case: Case) -> None:
    outputs = dict.fromkeys(case.outputs)
    for engine, prepare in {"pretrain": _pretraining, "distill": _distillation}.items():
        if engine not in case.json:
            continue
        # Student and first teacher see every second frame; VideoMAE sees all, two to a token.
        everything = case.inputs["video"].transpose(1, 2)
        video = everything[:, :: _mae_tubelet(case)]
        student, targets = prepare(case, everything, video)
        results = _step(case, engine, student.train(), video, targets)
        for output in [output for output in outputs if output.startswith(f"{engine}_")]:
            key = output.removeprefix(f"{engine}_")
            if key == "mask":
                assert torch.equal(results[key], case.outputs[output]), output
            elif key == "param_delta_norms_after_step":
                case.close(output, _without_noise(case, engine, results), atol=1e-6, rtol=2e-4)
            elif key == "clipped_gradnorms":
                case.close(output, results[key], atol=1e-6, rtol=2e-4)
            else:
                case.close(output, results[key], atol=1e-5, rtol=1e-5)
            del outputs[output]
    assert not outputs, f"not compared: {list(outputs)}"


def _mae_tubelet(case: Case) -> int:
    return case.config["mae"]["tubelet_size"] // case.config["student"].get("tubelet_size", 1)


def _pretraining(case: Case, everything: Tensor, video: Tensor) -> tuple[Stage1Student, Targets]:
    """A teacher of frames, VideoMAE, and a mask drawn in each frame."""
    config, mae_config = case.config, case.config["mae"]
    clip_teacher = build_internvl(config["teacher"] | {"img_size": config["clip_res"]}, case.state("pretrain_teacher"))
    mae_teacher = build_videomae(mae_config, case.state("mae_teacher"))
    branch = {"mae_teacher_embed_dim": mae_config["embed_dim"], "mae_return_layer": mae_config["mae_return_layer"]}
    student = load_student(branch | case.config["student"], case.state("pretrain_student"))
    clip = clip_teacher(video)
    masked = _draw(case, clip.attention.unflatten(0, (len(video), -1)))
    return student, Targets(masked, clip.visible(masked), mae_teacher(everything).visible(masked))


def _distillation(case: Case, _: Tensor, video: Tensor) -> tuple[Stage1Student, Targets]:
    """A teacher of clips and a mask drawn in the whole clip."""
    config = case.config
    sizes = {"embed_dim": config["dt_dim"], "img_size": config["clip_res"], "num_frames": video.shape[1]}
    teacher = build_internvideo2(config["teacher"] | sizes, case.state("distill_teacher"))
    student = load_student(
        case.config["student"] | {"clip_teacher_embed_dim": config["dt_dim"]}, case.state("distill_student")
    )
    clip = teacher(video)
    masked = _draw(case, clip.attention)
    return student, Targets(masked, clip.visible(masked), None)


def _draw(case: Case, attention: Tensor) -> Tensor:
    torch.manual_seed(case.config["seed"])
    return attention_masking(attention, torch.empty_like(attention).exponential_(), case.config["mask_ratio"])


def _step(case: Case, engine: str, student: Stage1Student, video: Tensor, targets: Targets) -> dict[str, Tensor]:
    recorded, order = case.json[engine], case.json[f"{engine}_param_order"]
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    optimizer = _optimizer(case, engine, student)
    features = student(video, targets.masked)
    losses = _losses(case, features, targets)
    weights = dict(zip(losses, [*case.config["ratio"], case.config["mae_ratio"]], strict=False))
    loss = sum(weights[name] * value for name, value in losses.items())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), case.config["clip"])
    gradients = student_gradient_norms(student, order)
    optimizer.step()

    for name, value in losses.items() | {"loss": loss, "all_loss_mean": loss, "grad_norm": norm}.items():
        torch.testing.assert_close(value.item(), recorded[name], rtol=2e-5, atol=0.0, msg=f"{engine}: {name}")
    after = dict(student.named_parameters())
    moved = [(after[name] - before[name]).norm() for name in map(rename_student, order)]
    visible_cls = torch.zeros(len(video), 1, dtype=torch.bool)
    results = {
        "mask": torch.cat([visible_cls, targets.masked], dim=1),
        "student_input": video.transpose(1, 2),
        "loss": loss,
        "clipped_gradnorms": gradients,
        "param_delta_norms_after_step": torch.stack(moved),
        "updated_cls_token": after["encoder.cls_token"],
        "updated_head0": after[rename_student("clip_decoder.0.head.weight")],
    }
    return results | {f"student_{name}": value for name, value in features._asdict().items() if value is not None}


def _without_noise(case: Case, engine: str, results: dict[str, Tensor]) -> Tensor:
    """How far the parameters moved, the recorded distance for those without any influence.

    The biases of the pooling's keys shift all scores alike: their gradients are rounding errors, which AdamW turns into
    steps of up to ``lr / eps`` times their size.
    """
    moved, gradients = results["param_delta_norms_after_step"], results["clipped_gradnorms"]
    noise = torch.tensor([name.endswith(WITHOUT_INFLUENCE) for name in case.json[f"{engine}_param_order"]])
    assert (gradients[noise] < 1e-6).all()
    assert (moved[noise] <= 1.01 * case.config["lr"] / EPS * gradients[noise]).all()
    return torch.where(noise, case.outputs[f"{engine}_param_delta_norms_after_step"], moved)


def _losses(case: Case, features: StudentFeatures, targets: Targets) -> dict[str, Tensor]:
    losses = {
        "loss_clip_middle": feature_alignment_loss(features.clip_middle, targets.clip.middle, normalize=False),
        "loss_clip_final": torch.zeros(()),
    }
    student = PUBLISHED | case.config["student"]
    if student["clip_teacher_final_dim"] and case.config["ratio"][1]:
        losses["loss_clip_final"] = feature_alignment_loss(features.clip_final, targets.clip.final, normalize=False)
    if targets.mae is not None:
        losses["loss_mae"] = feature_alignment_loss(features.mae, targets.mae.middle, normalize=False)
    return losses


def _optimizer(case: Case, engine: str, student: Stage1Student) -> torch.optim.AdamW:
    """AdamW of the recorded run: vectors learn at half the rate and do not decay."""
    rate, decay = case.config["lr"], case.json[engine]["weight_decay"]
    groups = parameter_groups(student.named_parameters())
    for group in groups:
        group["lr"] = rate if group["name"] == "decay" else rate / 2
    optimizer = torch.optim.AdamW(groups, weight_decay=decay, betas=(0.9, 0.98), eps=EPS)
    order = sorted(optimizer.param_groups, key=lambda group: group["name"])
    assert [group["lr"] for group in order] == case.json[f"{engine}_group_lr_after"]
    assert [group["weight_decay"] for group in order] == case.json[f"{engine}_group_wd_after"]
    return optimizer

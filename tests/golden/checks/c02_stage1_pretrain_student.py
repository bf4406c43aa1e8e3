"""Student of pre-training: features of both branches, losses against recorded targets, gradients.

The first sub-model of the configuration is the one with losses; the outputs of the others have its name without the
underscore in front, and ``nomask_`` is the first one with everything visible.
"""

import torch
from torch import Tensor

from ivt2.losses.feature_alignment import feature_alignment_loss
from ivt2.models.stage1 import StudentFeatures
from tests.golden.case import Case
from tests.golden.internvideo2 import PUBLISHED, clip_taps, load_student, mae_taps, student_gradient_norms

WORDS = {"half": 0.5, "quarter": 0.25}


def _alignment_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return feature_alignment_loss(student, teacher, normalize=False)


def check(case: Case) -> None:
    first, *others = case.config
    config = case.config[first]
    assert sorted(case.json["clip_return_index"]) == clip_taps(config)
    assert sorted(case.json["mae_return_index"]) == mae_taps(config)
    assert not case.inputs["mask"][:, 0].any()
    masked = case.inputs["mask"][:, 1:]
    assert set((~case.inputs["mask"]).sum(dim=1).tolist()) == {case.json["visible_per_sample"]}

    video = case.inputs["video"].transpose(1, 2)
    student = load_student(config, case.state(first))
    results = _features("", student(video, masked)) | _features("nomask_", student(video))
    for name in others:
        other = load_student(case.config[name], case.state(name))
        results |= _features(f"{name.replace('_', '')}_", other(video, masked))
    losses, targets = _losses(case, student(video, masked), config)
    results |= losses | targets

    for output in case.outputs:
        if match := output.partition("gradnorms_of_")[2]:
            student.zero_grad()
            _total(losses, match).backward(retain_graph=True)
            norms = student_gradient_norms(student, case.json["param_order"])
            case.close(output, norms, atol=1e-6, rtol=2e-4)
        elif match := output.partition("loss_total_")[2]:
            case.close(output, _total(losses, match))
        else:
            case.close(output, results[output])


def _features(prefix: str, features: StudentFeatures) -> dict[str, Tensor]:
    named = {f"{prefix}{field}": value for field, value in features._asdict().items() if value is not None}
    return named | {f"{prefix}mae_last": features.mae[-1]} if features.mae is not None else named


def _losses(case: Case, features: StudentFeatures, config: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses against the recorded teachers, and the teachers' features that enter them."""
    visible = ~case.inputs["mask"]
    masked = ~visible[:, 1:]
    middle, mae = case.inputs["teacher_clip_middle_full"], case.inputs["teacher_mae_full"]
    middle = torch.stack([layer[visible].view(len(visible), -1, layer.shape[-1]) for layer in middle])
    mae = torch.stack([layer[~masked].view(len(masked), -1, layer.shape[-1]) for layer in mae])
    losses = {
        "loss_clip_middle": _alignment_loss(features.clip_middle, middle),
        "loss_clip_final": (
            _alignment_loss(features.clip_final, case.inputs["teacher_clip_final"])
            if (PUBLISHED | config)["clip_teacher_final_dim"]
            else torch.zeros(())
        ),
        "loss_mae": _alignment_loss(features.mae, mae),
    }
    return losses, {"target_clip_middle_vis": middle, "target_mae_vis": mae}


def _total(losses: dict[str, Tensor], weights: str) -> Tensor:
    """Total under weights spelt as in ``half_2_quarter``."""
    factors = [WORDS[word] if word in WORDS else float(word) for word in weights.split("_")]
    names = ("loss_clip_middle", "loss_clip_final", "loss_mae")
    return sum(factor * losses[name] for factor, name in zip(factors, names, strict=True))

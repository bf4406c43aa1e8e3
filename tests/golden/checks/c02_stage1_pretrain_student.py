"""Student of pre-training: features of both branches, losses against recorded targets, gradients.

The first sub-model of the configuration is the one with losses; the outputs of the others have its name without the
underscore in front, and ``nomask_`` is the first one with everything visible.
"""

import torch
from torch import Tensor

from ivt2.losses.feature_alignment import feature_alignment_loss
from ivt2.models.stage1 import Stage1Student, StudentFeatures
from tests.golden.case import Case
from tests.golden.internvideo2 import build_student, clip_taps, mae_taps, rename_student

WORDS = {"half": 0.5, "quarter": 0.25}


def load(case: Case, model: str) -> Stage1Student:
    student = build_student(case.config[model])
    student.load_state_dict({rename_student(name): value for name, value in case.state(model).items()})
    return student


def alignment_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return feature_alignment_loss(student, teacher, normalize=False)


def check_gradients(case: Case, output: str, student: Stage1Student, order: list[str]) -> None:
    parameters = dict(student.named_parameters())
    assert {rename_student(name) for name in order} == set(parameters)
    gradients = [parameters[rename_student(name)].grad for name in order]
    norms = torch.stack([torch.zeros(()) if grad is None else grad.norm() for grad in gradients])
    case.close(output, norms, atol=1e-6, rtol=2e-4)


def check(case: Case) -> None:
    first, *others = case.config
    config = case.config[first]
    assert sorted(case.json["clip_return_index"]) == clip_taps(config)
    assert sorted(case.json["mae_return_index"]) == mae_taps(config)
    assert not case.inputs["mask"][:, 0].any()
    masked = case.inputs["mask"][:, 1:]
    assert set((~case.inputs["mask"]).sum(dim=1).tolist()) == {case.json["visible_per_sample"]}

    video = case.inputs["video"].transpose(1, 2)
    student = load(case, first)
    results = _features("", student(video, masked)) | _features("nomask_", student(video))
    for name in others:
        results |= _features(f"{name.replace('_', '')}_", load(case, name)(video, masked))
    losses, targets = _losses(case, student(video, masked), masked)
    results |= losses | targets

    for output in case.outputs:
        if match := output.partition("gradnorms_of_")[2]:
            student.zero_grad()
            losses[f"loss_total_{match}"] = _total(losses, match)
            losses[f"loss_total_{match}"].backward(retain_graph=True)
            check_gradients(case, output, student, case.json["param_order"])
        elif match := output.partition("loss_total_")[2]:
            case.close(output, _total(losses, match))
        else:
            case.close(output, results[output])


def _features(prefix: str, features: StudentFeatures) -> dict[str, Tensor]:
    named = {f"{prefix}{field}": value for field, value in features._asdict().items() if value is not None}
    return named | {f"{prefix}mae_last": features.mae[-1]} if features.mae is not None else named


def _losses(case: Case, features: StudentFeatures, masked: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses against the recorded teachers, and the teachers' features that enter them."""
    visible = ~case.inputs["mask"]
    middle, mae = case.inputs["teacher_clip_middle_full"], case.inputs["teacher_mae_full"]
    middle = torch.stack([layer[visible].view(len(visible), -1, layer.shape[-1]) for layer in middle])
    mae = torch.stack([layer[~masked].view(len(masked), -1, layer.shape[-1]) for layer in mae])
    losses = {
        "loss_clip_middle": alignment_loss(features.clip_middle, middle),
        "loss_clip_final": alignment_loss(features.clip_final, case.inputs["teacher_clip_final"]),
        "loss_mae": alignment_loss(features.mae, mae),
    }
    return losses, {"target_clip_middle_vis": middle, "target_mae_vis": mae}


def _total(losses: dict[str, Tensor], weights: str) -> Tensor:
    """Total under weights spelt as in ``half_2_quarter``."""
    factors = [WORDS[word] if word in WORDS else float(word) for word in weights.split("_")]
    names = ("loss_clip_middle", "loss_clip_final", "loss_mae")
    return sum(factor * losses[name] for factor, name in zip(factors, names, strict=True))

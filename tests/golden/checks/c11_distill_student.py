"""Student of distillation, with linear and with perceptron decoders: features, losses, gradients.

The sub-models see the same video and mask; ``total`` is the sum of the two terms.
"""

import torch

from ivt2.losses.feature_alignment import feature_alignment_loss
from ivt2.models.stage1 import Stage1Student
from tests.golden.case import Case
from tests.golden.internvideo2 import PUBLISHED, clip_taps, load_student, student_gradient_norms


def check(case: Case) -> None:
    checked: set[str] = set()
    for name, config in case.config.items():
        recorded = case.json[name]
        assert sorted(recorded["return_index"]) == clip_taps(config)
        student = load_student(config, case.state(name))
        results = _results(case, student, config)
        results["loss_total"].backward()
        for key, output in case.outputs_of(name).items():
            if key == "gradnorms":
                norms = student_gradient_norms(student, recorded["param_order"])
                case.close(output, norms, atol=1e-6, rtol=2e-4)
            else:
                case.close(output, results[key])
            checked.add(output)
    assert checked == set(case.outputs), f"not compared: {set(case.outputs) - checked}"


def _results(case: Case, student: Stage1Student, config: dict) -> dict[str, torch.Tensor]:
    shown = ~case.inputs["mask"]
    assert shown[:, 0].all()
    features = student(case.inputs["video"].transpose(1, 2), ~shown[:, 1:])
    assert features.mae is None
    teacher = case.inputs["teacher_clip_middle_full"]
    teacher = torch.stack([layer[shown].view(len(shown), -1, layer.shape[-1]) for layer in teacher])
    middle = feature_alignment_loss(features.clip_middle, teacher, normalize=False)
    final = torch.zeros(())
    if (PUBLISHED | config)["clip_teacher_final_dim"]:
        final = feature_alignment_loss(features.clip_final, case.inputs["teacher_clip_final"], normalize=False)
    return {
        "clip_middle": features.clip_middle,
        "clip_final": features.clip_final,
        "loss_middle": middle,
        "loss_final": final,
        "loss_total": middle + final,
    }

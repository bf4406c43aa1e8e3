"""One optimisation step of pre-training and one of distillation, from a video with twice the student's frames."""

from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ivt2.models.stage1 import Stage1Student, StudentFeatures, StudentLayers
from ivt2.modules import masked_targets
from ivt2.modules.distill import DistillModule
from ivt2.modules.masked_learning import MaskedLearning
from ivt2.modules.stage1 import Stage1Module
from ivt2.optim.parameter_groups import parameter_groups
from tests.golden.case import Case
from tests.golden.internvideo2 import PUBLISHED, load_student, rename_student, student_gradient_norms
from tests.golden.teachers import build_internvideo2, build_internvl, build_videomae

EPS = 1e-6
LOSSES = ("clip_middle", "clip_final", "mae")
WITHOUT_INFLUENCE = ("clip_projector.norm1_k.bias", "clip_projector.cross_attn.k_bias")


def check(case: Case) -> None:
    outputs = dict.fromkeys(case.outputs)
    for engine, prepare in {"pretrain": _pretraining, "distill": _distillation}.items():
        if engine not in case.json:
            continue
        results = _step(case, engine, *prepare(case))
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


def _pretraining(case: Case) -> tuple[MaskedLearning, Tensor]:
    """A teacher of frames and VideoMAE, which sees all frames, two to a token; a mask drawn in each frame."""
    config, mae_config = case.config, case.config["mae"]
    teacher = build_internvl(config["teacher"] | {"img_size": config["clip_res"]}, case.state("pretrain_teacher"))
    branch = {"mae_teacher_embed_dim": mae_config["embed_dim"], "mae_return_layer": mae_config["mae_return_layer"]}
    module = Stage1Module(
        load_student(branch | config["student"], case.state("pretrain_student")),
        clip_teacher=teacher,
        mae_teacher=build_videomae(mae_config, case.state("mae_teacher")),
        **_options(case, config["mae_ratio"]),
    )
    return module, case.inputs["video"].transpose(1, 2)


def _distillation(case: Case) -> tuple[MaskedLearning, Tensor]:
    """A teacher of clips and a mask drawn in the whole clip; the run gave it every second frame of the video."""
    config = case.config
    video = case.inputs["video"].transpose(1, 2)[:, :: _mae_tubelet(case)]
    sizes = {"embed_dim": config["dt_dim"], "img_size": config["clip_res"], "num_frames": video.shape[1]}
    student = load_student(
        config["student"] | {"clip_teacher_embed_dim": config["dt_dim"]}, case.state("distill_student")
    )
    teacher = build_internvideo2(config["teacher"] | sizes, case.state("distill_teacher"))
    return DistillModule({"student": student}, teacher, **_options(case)), video


def _options(case: Case, *mae_ratio: float) -> dict:
    """Weights of the recorded run; its optimizer is built by ``_optimizer``."""
    weights = dict(zip(LOSSES, [*case.config["ratio"], *mae_ratio], strict=False))
    if not (PUBLISHED | case.config["student"])["clip_teacher_final_dim"]:
        weights["clip_final"] = 0.0
    return {
        "weights": weights,
        "mask_ratio": case.config["mask_ratio"],
        "optimizer": torch.optim.AdamW,
        "schedule": partial(LambdaLR, lr_lambda=lambda _: 1.0),
    }


def _recorded_draws(case: Case, seed: Tensor, num: int, _stream: int) -> Tensor:
    """Uniform draws that become the exponential ones of the recorded run, which one generator gave."""
    torch.manual_seed(case.config["seed"])
    return -torch.expm1(-torch.empty(len(seed), num).exponential_().double())


def _step(case: Case, engine: str, module: MaskedLearning, everything: Tensor) -> dict[str, Tensor]:
    (student,) = module.train().named_students().values()
    recorded, order = case.json[engine], case.json[f"{engine}_param_order"]
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    optimizer = _optimizer(case, engine, student)
    given: list[Tensor] = []
    said: list[StudentFeatures] = []
    original = student.decode

    def decode(video: Tensor, *, visible: Tensor) -> StudentLayers:
        given.append(video)
        said.append(student(video, visible=visible))
        return original(video, visible=visible)

    logged: dict[str, Tensor] = {}
    batch = {"video": everything, "seed": torch.arange(len(everything))}
    with (
        patch.object(masked_targets, "uniform", partial(_recorded_draws, case)),
        patch.object(student, "decode", decode),
        patch.object(module, "log", lambda name, value, **_: logged.update({name: value})),
    ):
        loss = module.training_step(batch, 0)
    (video,), (features,) = given, said
    assert module.last_masked is not None
    masked = module.last_masked
    losses = {f"loss_{term}": logged.get(f"train/loss_{term}", torch.zeros(())) for term in _terms(engine)}
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
        "mask": torch.cat([visible_cls, masked], dim=1),
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


def _terms(engine: str) -> tuple[str, ...]:
    """Terms that the recorded run names; one that it leaves out is 0."""
    return LOSSES if engine == "pretrain" else LOSSES[:2]


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

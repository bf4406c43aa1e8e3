"""Tiny students, teachers and batches of masked learning; shared by the tests and their ranks."""

from functools import partial

import torch

from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.internvl import InternVLTeacher
from ivt2.models.stage1 import Branch, build_student
from ivt2.models.teacher import InternVideo2Teacher, VideoMAETeacher
from ivt2.models.videomae import VideoMAE
from ivt2.modules.distill import DistillModule
from ivt2.modules.stage1 import Stage1Module
from ivt2.ops.random import derive_seed
from ivt2.optim.schedules import warmup_cosine

SIZES = {"image_size": 12, "patch_size": 4, "num_heads": 2, "mlp_ratio": 2.0}
POOL = {"pool_num_heads": 2, "pooled_dim": 10, "layer_scale_init": 1.0}
CLIP = Branch(teacher_dim=32, num_layers=2, final_dim=10)
MAE = Branch(teacher_dim=24, num_layers=3, decoder="mlp", cls_token=False)
WEIGHTS = {"clip_middle": 1.0, "clip_final": 1.0, "mae": 1.0}
DEFAULTS = {
    "weights": WEIGHTS,
    "optimizer": partial(torch.optim.AdamW, lr=3e-3),
    "schedule": partial(warmup_cosine, warmup_steps=0),
    "mask_ratio": 0.6,
}


def shaken(network, seed):
    """With weights large enough that features differ."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 and "pos_embed" not in name:
            parameter.data.normal_(std=0.25, generator=generator)
        elif name.endswith(".bias"):
            parameter.data.normal_(std=0.1, generator=generator)
    return network


def encoder(num_frames=4, *, embed_dim=16, depth=3, **options):
    return InternVideo2(**SIZES | POOL | options, num_frames=num_frames, embed_dim=embed_dim, depth=depth)


def student(clip=CLIP, mae=MAE, *, seed=0, **options):
    return shaken(build_student(encoder(**options), clip=clip, mae=mae), seed)


def teacher_of_frames(**options):
    return shaken(InternVLTeacher(encoder(1, embed_dim=32, **options), taps=(1, 2)), 1)


def teacher_of_clips(num_frames=4, **options):
    return shaken(InternVideo2Teacher(encoder(num_frames, embed_dim=32, **options), taps=(0, 2)), 2)


def teacher_of_tubelets(num_frames=8, **options):
    return shaken(VideoMAETeacher(VideoMAE(**SIZES | options, num_frames=num_frames, embed_dim=24, depth=3),
                                  taps=(0, 1, 2)), 3)  # fmt: skip


def stage1(learner=None, **options):
    """`logged` of a module holds what a step logs."""
    teachers = {"clip_teacher": teacher_of_frames(), "mae_teacher": teacher_of_tubelets()}
    return recorded(Stage1Module(learner or student(), **DEFAULTS | teachers | options))


def distill(students=None, teacher=None, **options):
    students = students or {"s": student(mae=None)}
    return recorded(DistillModule(students, teacher or teacher_of_clips(), **DEFAULTS | options))


def recorded(module):
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: value})
    return module


def batch(rows=range(4), num_frames=8):
    """Samples by number: each is the same whatever stands beside it."""
    rows = list(rows)
    videos = [torch.zeros(0, num_frames, 3, 12, 12, dtype=torch.uint8)]
    for row in rows:
        generator = torch.Generator().manual_seed(row)
        videos.append(torch.randint(0, 256, (1, num_frames, 3, 12, 12), dtype=torch.uint8, generator=generator))
    return {
        "video": torch.cat(videos),
        "sample_id": torch.tensor(rows, dtype=torch.int64),
        "seed": torch.tensor([derive_seed(7, row) for row in rows], dtype=torch.int64),
        "label": torch.full((len(rows),), -1),
        "key": [str(row) for row in rows],
        "source": "toy",
        "skipped": [],
    }


def step(module, data):
    """Loss and what was logged, as numbers."""
    module.logged.clear()
    loss = module.training_step(data, 0)
    return loss, {name.removeprefix("train/"): value.item() for name, value in module.logged.items()}


def gradients(module):
    """Of every parameter that has one."""
    return {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}

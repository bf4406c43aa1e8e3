"""Tiny CLIP modules and batches for them; shared by the tests and their ranks."""

from functools import partial

import torch

from ivt2.batch import Vocabulary
from ivt2.models.clip import ClipModel
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.llama_text import LlamaText
from ivt2.models.mobileclip import MobileClipText
from ivt2.modules.clip import ClipModule
from ivt2.optim.schedules import warmup_cosine
from tests.modules.stage2_case import batch as stage2_batch

VOCABULARY = Vocabulary(size=120, pad_id=0, unk_id=-1, cls_id=118, sep_id=119, mask_id=-1)
VISION, TEXT, POOL = "vision_encoder", "text_encoder", "vision_encoder.clip_projector"
FROZEN = {"frozen": [VISION, TEXT], "trained": [POOL]}
"""As every published model was trained."""


def make_model(kind="small", drop=0.0, **options):
    """Network with weights large enough that its features differ; `drop` is the rate of all that drops."""
    torch.manual_seed(0)
    vision = InternVideo2(
        image_size=8, patch_size=4, num_frames=2, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0,
        layer_scale_init=1.0, pool_num_heads=2, pooled_dim=12, drop_path=drop,
    )  # fmt: skip
    if kind == "small":
        text = MobileClipText(
            vocab_size=120, context_length=7, embed_dim=16, depth=1, num_heads=2, projection_dim=6
        )  # fmt: skip
    else:
        text = LlamaText(
            vocab_size=120, embed_dim=16, depth=1, num_heads=2, mlp_dim=24, projection_dim=12, lora_rank=2,
            lora_dropout=drop,
        )  # fmt: skip
    model = ClipModel(vision, text, vision_align=6 if kind == "small" else None, temperature=0.1, **options)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "pos_embed" not in name:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def make(model=None, **options):
    """Module around a network; `logged` holds what a step logs."""
    model = make_model() if model is None else model
    defaults = {
        "optimizer": partial(torch.optim.AdamW, lr=3e-3),
        "schedule": partial(warmup_cosine, warmup_steps=0),
    }
    module = ClipModule(model, **defaults | options)
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: value})
    return module


def batch(rows=range(4), **options):
    """Samples by number, as in stage 2, whose captions end with the end token."""
    data = stage2_batch(rows, **options)
    last = data["valid"].sum(dim=1, keepdim=True) - 1
    data["input_ids"] = data["input_ids"].clamp(max=117).scatter(1, last, VOCABULARY.sep_id)
    return data

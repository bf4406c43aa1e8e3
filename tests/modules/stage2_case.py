"""A tiny stage-2 module and batches for it; shared by the tests and their ranks."""

from functools import partial

import torch

from ivt2.batch import Vocabulary
from ivt2.models.bert import Bert
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.stage2 import Stage2Model
from ivt2.modules.stage2 import Stage2Module
from ivt2.ops.random import derive_seed
from ivt2.optim.schedules import warmup_cosine

VOCABULARY = Vocabulary(size=120, pad_id=0, unk_id=100, cls_id=101, sep_id=102, mask_id=103)
TERMS = {"vtc": 1.0, "vtm": 1.0, "mlm": 1.0}


def make_model(drop=0.0):
    """Network with weights large enough that its features differ; `drop` is the rate of all that drops."""
    torch.manual_seed(0)
    vision = InternVideo2(
        image_size=8, patch_size=4, num_frames=2, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0,
        layer_scale_init=1.0, pool_num_heads=2, pooled_dim=12, drop_path=drop,
    )  # fmt: skip
    text = Bert(
        vocab_size=120, embed_dim=16, depth=2, num_heads=2, mlp_dim=32, max_positions=10, fusion_layer=1,
        encoder_width=16, dropout=drop, attention_dropout=drop,
    )  # fmt: skip
    model = Stage2Model(vision, text, contrastive_dim=6)
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
        "terms": TERMS,
        "mask_ratio": {"video": 0.5, "image": 0.25},
    }
    module = Stage2Module(model, **defaults | options)
    module.vocabulary = VOCABULARY
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: value})
    return module


def batch(rows=range(4), num_frames=2, sample_id=None):
    """Samples by number: each is the same whatever stands beside it."""
    rows = list(rows)
    videos, captions, lengths = [torch.zeros(0, num_frames, 3, 8, 8, dtype=torch.uint8)], [], []
    for row in rows:
        generator = torch.Generator().manual_seed(row)
        videos.append(torch.randint(0, 256, (1, num_frames, 3, 8, 8), dtype=torch.uint8, generator=generator))
        captions.append(torch.randint(104, 120, (1, 7), generator=generator))
        lengths.append(4 + row % 4)
    valid = torch.arange(7) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    input_ids = torch.cat([torch.zeros(0, 7, dtype=torch.int64), *captions])
    input_ids[:, 0] = VOCABULARY.cls_id
    return {
        "video": torch.cat(videos),
        "input_ids": input_ids.masked_fill(~valid, VOCABULARY.pad_id),
        "valid": valid,
        "sample_id": torch.tensor(rows if sample_id is None else sample_id, dtype=torch.int64),
        "seed": torch.tensor([derive_seed(7, row) for row in rows], dtype=torch.int64),
        "key": [str(row) for row in rows],
        "source": "toy",
        "skipped": [],
    }


def gradients(module):
    """Of every parameter that has one."""
    return {name: each.grad.clone() for name, each in module.model.named_parameters() if each.grad is not None}

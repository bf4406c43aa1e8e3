"""A tiny stage-2 module and batches for it; shared by the tests and their ranks."""

from functools import partial
from types import SimpleNamespace

import torch

from ivt2.batch import TextTokens, Vocabulary
from ivt2.models.beats import Beats
from ivt2.models.bert import Bert
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.stage2 import Stage2Model
from ivt2.models.stage2_audio import Stage2AudioVisualModel
from ivt2.models.teacher import InternVideo2Teacher
from ivt2.modules.stage2 import Stage2Module
from ivt2.modules.stage2_terms import MODALITIES
from ivt2.modules.stage2_terms import TERMS as ALL_TERMS
from ivt2.nn.aligning import AligningDecoders
from ivt2.ops.random import derive_seed
from ivt2.optim.schedules import warmup_cosine

VOCABULARY = Vocabulary(size=120, pad_id=0, unk_id=100, cls_id=101, sep_id=102, mask_id=103)
TERMS = {"vtc": 1.0, "vtm": 1.0, "mlm": 1.0}
KINDS = ("fused", "speech")
CAPTIONS = {"vtc": None, "vtm": "fused", "mlm": "speech", "atc": "fused", "avtm": "speech", "avmlm": "fused"}
"""Terms that read captions of a kind; the others read the main one."""
EACH = {name: {"weight": 1.0, "caption": CAPTIONS.get(name)} for name in ALL_TERMS}


def make_model(drop=0.0, *, sound=False, decoders=False, **options):
    """Network with weights large enough that its features differ; `drop` is the rate of all that drops.

    With `sound` it hears, with `decoders` it has some towards `make_teacher()`.
    """
    torch.manual_seed(0)
    vision = InternVideo2(
        image_size=8, patch_size=4, num_frames=2, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0,
        layer_scale_init=1.0, pool_num_heads=2, pooled_dim=12, drop_path=drop,
    )  # fmt: skip
    text = Bert(
        vocab_size=120, embed_dim=16, depth=2, num_heads=2, mlp_dim=32, max_positions=10, fusion_layer=1,
        encoder_width=16, dropout=drop, attention_dropout=drop,
    )  # fmt: skip
    if decoders:
        sizes = {"embed_dim": 16, "pooled_dim": 12, "num_frames": 2, "grid_size": 2}
        options["clip_decoders"] = AligningDecoders(num_layers=1, teacher_dim=32, final_dim=6, **sizes)
    if sound:
        audio = Beats(
            patch_size=4, patch_dim=8, embed_dim=12, depth=2, num_heads=2, mlp_dim=24, position_kernel=4,
            position_groups=2, num_buckets=8, max_distance=16, dropout=drop,
        )  # fmt: skip
        parts = {"fusion_dim": 16, "audio_matching": True}
        model = Stage2AudioVisualModel(vision, text, audio, contrastive_dim=6, **parts | options)
    else:
        model = Stage2Model(vision, text, contrastive_dim=6, **options)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "pos_embed" not in name:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def make_teacher():
    """Who has other widths than the student, and says something else of each clip."""
    torch.manual_seed(1)
    encoder = InternVideo2(
        image_size=8, patch_size=4, num_frames=2, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2.0,
        layer_scale_init=1.0, pool_num_heads=2, pooled_dim=6,
    )  # fmt: skip
    return InternVideo2Teacher(encoder, taps=[2])


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


def trainer(media=None, kinds=None, *, vocabulary=VOCABULARY):
    """What `setup` looks at: sources, and the captions that they deliver."""
    media = {"train.web": "video"} if media is None else media
    data = SimpleNamespace(vocabulary=vocabulary, media=media, caption_kinds=kinds or {})
    return SimpleNamespace(datamodule=data)


def captions(rows, salt=0):
    """Ids and validity, each row whatever stands beside it."""
    ids, lengths = [torch.zeros(0, 7, dtype=torch.int64)], []
    for row in rows:
        generator = torch.Generator().manual_seed(1000 * salt + row)
        ids.append(torch.randint(104, 120, (1, 7), generator=generator))
        lengths.append(4 + (row + salt) % 4)
    valid = torch.arange(7) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    input_ids = torch.cat(ids)
    input_ids[:, 0] = VOCABULARY.cls_id
    return TextTokens(input_ids.masked_fill(~valid, VOCABULARY.pad_id), valid)


def batch(rows=range(4), num_frames=2, sample_id=None, *, medium="video", kinds=()):
    """Samples by number: each is the same whatever stands beside it."""
    rows = list(rows)
    videos = [torch.zeros(0, num_frames, 3, 8, 8, dtype=torch.uint8)]
    sounds = [torch.zeros(0, 9, 8)]
    for row in rows:
        generator = torch.Generator().manual_seed(row)
        videos.append(torch.randint(0, 256, (1, num_frames, 3, 8, 8), dtype=torch.uint8, generator=generator))
        sounds.append(torch.randn(1, 9, 8, generator=generator))
    media = {"video": torch.cat(videos), "audio": torch.cat(sounds)}
    main = captions(rows)
    texts = {kind: captions(rows, salt) for salt, kind in enumerate(kinds, start=1)}
    return {
        **{modality: media[modality] for modality in MODALITIES[medium]},
        "input_ids": main.input_ids,
        "valid": main.valid,
        **({"texts": texts} if kinds else {}),
        "sample_id": torch.tensor(rows if sample_id is None else sample_id, dtype=torch.int64),
        "seed": torch.tensor([derive_seed(7, row) for row in rows], dtype=torch.int64),
        "key": [str(row) for row in rows],
        "medium": medium,
        "source": "toy",
        "skipped": [],
    }


def hearing(terms=None, *, drop=0.0, logit_bias=None, **options):
    """A module whose model has every part, and all terms."""
    model = make_model(drop, sound=True, decoders=True, logit_bias=logit_bias)
    return make(model, terms=EACH if terms is None else terms, teacher=make_teacher(), **options)


def whole(medium="audio_video", **options):
    """A batch with captions of every kind."""
    return batch(medium=medium, kinds=KINDS, num_frames=1 if medium == "image" else 2, **options)


def gradients(module):
    """Of every parameter that has one."""
    return {name: each.grad.clone() for name, each in module.model.named_parameters() if each.grad is not None}


def fit(module, step, rows, media=("video", "audio", "audio_video")):
    """Steps of one medium each, by an optimizer that tells a gradient of zero from none."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9, weight_decay=1.0)
    for medium in media:
        optimizer.zero_grad()
        step(whole(medium, rows=rows)).backward()
        optimizer.step()

"""Files of the single-modality part: masked pre-training, distillation, classification.

Source: reference single_modality, state dicts of the instantiated networks and its loader (run_finetuning.py).
"""

from ivt2.checkpoint.keymaps.encoder import POSITION_TABLES, WRAPPERS, aligning, encoder
from ivt2.checkpoint.keymaps.keymap import KeyMap
from ivt2.checkpoint.keymaps.rules import Drop, Section

_HEAD = Section(
    "head.",
    "",
    (
        (r"^mlp_norm\.", "extra_mlp.0."),
        (r"^mlp\.", "extra_mlp.1."),
        (r"^norm\.", "fc_norm."),
        (r"^linear\.", "head."),
        (r"^down\.", "down.0."),
        (r"^merge_norm\.", "down_norm."),
    ),
)

PRETRAIN = KeyMap(
    name="stage1-pretrain",
    version=1,
    sections=(encoder("encoder."), aligning("clip"), aligning("mae")),
    resized=POSITION_TABLES,
    wrappers=WRAPPERS,
)
"""The student of masked pre-training (``pretrain.pth``), with its decoders towards InternVL and VideoMAEv2.

Published as written by DeepSpeed (under ``module``) or bare; the reference reads both.
"""

DISTILLED = KeyMap(
    name="stage1-distilled",
    version=1,
    sections=(encoder("encoder."), aligning("clip")),
    resized=POSITION_TABLES,
    wrappers=WRAPPERS,
)
"""S/14, B/14 and L/14 (``*_dist_1B_stage2/pytorch_model.bin``), with decoders towards the 1B model of stage 2."""

FINETUNED = KeyMap(
    name="stage1-finetuned",
    version=1,
    sections=(encoder("encoder."), _HEAD),
    resized=POSITION_TABLES,
    wrappers=WRAPPERS,
)
"""A classifier on the pooled vector (``1B_ft_*.pth`` and the like): ``fc_norm``, then ``head``."""

ATTENTIVE_PROBE = KeyMap(
    name="stage1-attentive-probe",
    version=1,
    sections=(encoder("encoder."), _HEAD),
    resized=POSITION_TABLES,
    wrappers=WRAPPERS,
)
"""The attentive probe (reference family ``ap``): ``extra_mlp`` on the pooled vector, then as a classifier."""

CONCATENATING_PROBE = KeyMap(
    name="stage1-concatenating-probe",
    version=1,
    sections=(encoder("encoder."), _HEAD),
    resized=POSITION_TABLES,
    drops=(Drop(r"fc_norm\.(weight|bias)", "norm of the pooled vector, which this way of merging does not use"),),
    wrappers=WRAPPERS,
)
"""The probe that concatenates tokens (reference family ``cat``), with any of its ways to merge and to normalise.

``cls_avg1`` and ``cls_avgN`` carry an ``fc_norm`` that their forward pass never reads.
"""

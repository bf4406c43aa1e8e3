"""Frozen teachers, each as the bare network; a wrapper that holds it takes ``.under("encoder.")``."""

from ivt2.checkpoint.keymaps.encoder import (
    ALIGNING,
    CLASSIFIER,
    IMAGE_TABLE,
    POSITION_TABLES,
    RECONSTRUCTION,
    WRAPPERS,
    encoder,
)
from ivt2.checkpoint.keymaps.keymap import KeyMap
from ivt2.checkpoint.keymaps.rules import Axis, Dialect, Drop, Section
from ivt2.checkpoint.keymaps.text import INTERNVL_QLLAMA, INTERNVL_TEXT, INTERNVL_TRAINING

INTERNVL = KeyMap(
    name="internvl-c-vision",
    version=1,
    sections=(encoder(),),
    resized=POSITION_TABLES,
    axes=(Axis(r"patch_embed\.proj\.weight$", 2, ours=True, optional=True),),
    drops=(INTERNVL_TEXT, INTERNVL_TRAINING, INTERNVL_QLLAMA),
)
"""The vision tower in ``internvl_c_13b_224px.pth`` (under ``module``), for single frames.

Its patch projection has no axis for time; a file saved from the reference's teacher has one. The keys that belong to
the text tower or are left over from training are those that OpenGVLab/InternVideo issue 125 lists.
"""

VIDEOMAE = KeyMap(
    name="videomae-v2-g",
    version=1,
    sections=(Section("", "encoder.", ((r"\.ls([12])\.gamma$", r".gamma_\1"),)),),
    drops=(Drop(r"(decoder\.|encoder_to_decoder\.|mask_token$)", "decoder of VideoMAE"),),
    dialects=(Dialect(((r"^encoder\.", ""),)),),
)
"""The encoder in ``vit_g_hybrid_1200e_pre.pth`` (under ``model``), or by itself; its position table is not stored."""

INTERNVIDEO2_STAGE1 = KeyMap(
    name="internvideo2-from-stage1",
    version=1,
    sections=(encoder(),),
    resized=POSITION_TABLES,
    drops=(ALIGNING, RECONSTRUCTION, CLASSIFIER),
    wrappers=WRAPPERS,
)
"""The encoder of a pre-trained, distilled or fine-tuned file of the single-modality part."""

INTERNVIDEO2_STAGE2 = KeyMap(
    name="internvideo2-from-stage2",
    version=1,
    sections=(encoder("", "vision_encoder."),),
    resized=POSITION_TABLES,
    drops=(
        ALIGNING,
        IMAGE_TABLE,
        Drop(
            r"(text_encoder|text_proj|vision_proj|itm_head)\.|temp$", "text encoder, projections and heads of stage 2"
        ),
        Drop(r"(audio_encoder|audio_proj|av_concat_(vision|audio)_proj|av_fusion|a?v?tm_head)\.", "audio of stage 2"),
    ),
)
"""The vision encoder of a stage-2 file, visual or audio-visual: the teacher of the small models."""

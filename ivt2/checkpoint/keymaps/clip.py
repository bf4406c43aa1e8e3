"""The CLIP models: the parts they are published in, and whole.

A released CLIP file is a delta: the temperature and the pooling (small models: also the alignment), on top of a vision
encoder and a text encoder from other files. Source: reference multi_modality, InternVideo2_CLIP and _CLIP_small.
"""

from dataclasses import replace

from ivt2.checkpoint.keymaps.encoder import POSITION_TABLES, encoder
from ivt2.checkpoint.keymaps.keymap import KeyMap
from ivt2.checkpoint.keymaps.rules import Axis, Section
from ivt2.checkpoint.keymaps.teachers import INTERNVIDEO2_STAGE1, INTERNVIDEO2_STAGE2
from ivt2.checkpoint.keymaps.text import LLAMA, MOBILECLIP, MOBILECLIP_RENAMES, PEFT_BEFORE_07, ROTARY

_TEMPERATURE = Axis(r"temperature$", 0, ours=True)
_COMMON = (
    encoder("vision_encoder.", "vision_encoder."),
    Section("temperature", "temp"),
    Section("vision_align.", "vision_align."),
)

LARGE = KeyMap(
    name="clip-large",
    version=1,
    sections=(*_COMMON, Section("text_encoder.", "text_encoder.")),
    resized=POSITION_TABLES,
    axes=(_TEMPERATURE,),
    drops=(ROTARY,),
    dialects=(PEFT_BEFORE_07,),
)
"""CLIP-1B or 6B in one file, with or without LoRA, as the network has it."""

SMALL = KeyMap(
    name="clip-small",
    version=1,
    sections=(*_COMMON, Section("text_encoder.", "text_encoder.", MOBILECLIP_RENAMES)),
    resized=rf"(?!text_encoder\.){POSITION_TABLES}",
    axes=(_TEMPERATURE, Axis(r"text_encoder\.pos_embed$", 0, ours=False)),
)
"""CLIP-S, B or L in one file, with MobileCLIP's text tower."""

VISION_FROM_STAGE2 = replace(INTERNVIDEO2_STAGE2, name="clip-vision-from-stage2").under("vision_encoder.")
"""The vision encoder of CLIP-1B and 6B, from a stage-2 file."""

VISION_FROM_DISTILLED = replace(INTERNVIDEO2_STAGE1, name="clip-vision-from-distilled").under("vision_encoder.")
"""The vision encoder of CLIP-S, B and L, from a distilled student."""

TEXT_FROM_INTERNVL = replace(LLAMA, name="clip-text-from-internvl").under("text_encoder.")
"""The text encoder of CLIP-1B and 6B."""

TEXT_FROM_MOBILECLIP = replace(MOBILECLIP, name="clip-text-from-mobileclip").under("text_encoder.")
"""The text encoder of CLIP-S, B and L."""

DELTA_LARGE = replace(LARGE, name="clip-large-delta", provides=r"temperature$|vision_encoder\.clip_projector\.")
"""``1B_clip.pth`` or ``6B_clip.pth``: temperature, pooling, and 32 tables of frequencies that are computed anyway."""

DELTA_SMALL = replace(
    SMALL, name="clip-small-delta", provides=r"temperature$|vision_encoder\.clip_projector\.|vision_align\."
)
"""``pytorch_model.bin`` of CLIP-S, B or L: temperature, pooling and alignment."""

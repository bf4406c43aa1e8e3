"""Files of stage 2, visual and audio-visual.

The reference keeps the aligning decoders in the vision encoder. Its pre-training wraps BERT (``text_encoder.bert.*``
and ``text_encoder.cls.*``), its retrieval fine-tuning does not; either map reads both and writes its own.
Source: reference multi_modality, state dicts of the instantiated networks.
"""

from ivt2.checkpoint.keymaps.audio import GATES, NEW_WEIGHT_NORM, SHARED_POSITION_BIAS, beats
from ivt2.checkpoint.keymaps.encoder import ALIGNING, POSITION_TABLES, RECONSTRUCTION, WRAPPERS, aligning, encoder
from ivt2.checkpoint.keymaps.keymap import KeyMap
from ivt2.checkpoint.keymaps.rules import Axis, Dialect, Drop, Section
from ivt2.checkpoint.keymaps.text import BERT_POSITIONS, bert, bert_copies

_MASKED_LM = Drop(r"text_encoder\.cls\.", "head of masked language modelling; this network has none")
_TEACHER = Drop(r"clip_teacher\.", "the frozen teacher")
_AUDIO = (
    Drop(r"(audio_encoder|audio_proj|av_concat_audio_proj)\.", "audio encoder; this network has none"),
    Drop(r"av_fusion\.", "fusion of pooled audio and vision; this network has none"),
    Drop(r"atm_head\.", "head that matches audio and text; this network has none"),
    Drop(r"avtm_head\.", "head that matches audio, vision and text; this network has none"),
)
_TEMPERATURE = Axis(r"temperature$", 0, ours=True)

_VISUAL = (
    encoder("vision_encoder.", "vision_encoder."),
    aligning("clip", "vision_encoder."),
    Section("vision_token_proj.", "av_concat_vision_proj."),
    Section("matching_head.", "itm_head."),
    Section("temperature", "temp"),
)
_AUDIO_VISUAL = (
    *beats("audio_encoder.", "audio_encoder."),
    Section("audio_token_proj.", "av_concat_audio_proj."),
    Section("audio_visual_fusion.", "av_fusion."),
    Section("audio_matching_head.", "atm_head."),
    Section("audio_visual_matching_head.", "avtm_head."),
    *_VISUAL,
)
_WRAPPED = bert("text_encoder.", "text_encoder.")
_BARE = bert("text_encoder.", "text_encoder.", body="")
_REST = (Section(),)
_WITHOUT_WRAPPER = Dialect(((r"^text_encoder\.bert\.", "text_encoder."),))
_WITH_WRAPPER = Dialect(((r"^text_encoder\.(?=embeddings\.|encoder\.)", "text_encoder.bert."),))

VISUAL = KeyMap(
    name="stage2-visual",
    version=1,
    sections=(*_VISUAL, *_WRAPPED, *_REST),
    resized=POSITION_TABLES,
    axes=(_TEMPERATURE,),
    drops=(_MASKED_LM, _TEACHER, ALIGNING),
    copies=bert_copies(r"text_encoder\."),
    positions=BERT_POSITIONS,
    dialects=(_WITHOUT_WRAPPER,),
)
"""The visual model as pre-training writes it: the released 1B (``InternVideo2-stage2_1b-224p-f4.pt``)."""

VISUAL_RETRIEVAL = KeyMap(
    name="stage2-visual-retrieval",
    version=1,
    sections=(*_VISUAL, *_BARE, *_REST),
    resized=POSITION_TABLES,
    axes=(_TEMPERATURE,),
    drops=(_MASKED_LM, _TEACHER, ALIGNING),
    positions=BERT_POSITIONS,
    dialects=(_WITH_WRAPPER,),
)
"""The visual model as retrieval fine-tuning writes it: BERT without wrapper and without head."""

AUDIO_VISUAL = KeyMap(
    name="stage2-audio-visual",
    version=1,
    sections=(*_AUDIO_VISUAL, *_WRAPPED, *_REST),
    resized=POSITION_TABLES,
    axes=(_TEMPERATURE,),
    drops=(_MASKED_LM, _TEACHER, ALIGNING, *_AUDIO, GATES),
    copies=(*bert_copies(r"text_encoder\."), *SHARED_POSITION_BIAS),
    positions=BERT_POSITIONS,
    dialects=(_WITHOUT_WRAPPER, NEW_WEIGHT_NORM),
)
"""The released 6B, with its audio encoder (``internvideo2-s2_6b-224p-f4_with_audio_encoder.pt``) or without.

BEATs repeats its relative positions in each layer. A network without audio takes the vision and text of either file.
"""

AUDIO_VISUAL_RETRIEVAL = KeyMap(
    name="stage2-audio-visual-retrieval",
    version=1,
    sections=(*_AUDIO_VISUAL, *_BARE, *_REST),
    resized=POSITION_TABLES,
    axes=(_TEMPERATURE,),
    drops=(_MASKED_LM, _TEACHER, ALIGNING, *_AUDIO, GATES),
    copies=SHARED_POSITION_BIAS,
    positions=BERT_POSITIONS,
    dialects=(_WITH_WRAPPER, NEW_WEIGHT_NORM),
)
"""The 6B as retrieval fine-tuning writes it: BERT without wrapper and without head, no audio unless it was trained."""

VISION_FROM_STAGE1 = KeyMap(
    name="stage2-vision-from-stage1",
    version=1,
    provides=r"(vision_encoder|clip_decoders)\.(?!img_pos_embed)",
    sections=(encoder("vision_encoder."), aligning("clip")),
    resized=POSITION_TABLES,
    drops=(ALIGNING, RECONSTRUCTION),
    wrappers=WRAPPERS,
)
"""Where stage 2 starts: the vision encoder and its decoders from a file of stage-1 pre-training.

Stage 1 has no position tables for images; they keep their sines and cosines.
"""

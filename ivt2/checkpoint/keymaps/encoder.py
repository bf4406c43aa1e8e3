"""What all files with a video encoder have in common.

The encoder has the reference's names, but for three biases that the reference keeps beside the pooling's projections
and we keep in them. Source: reference single_modality and multi_modality, model definitions.
"""

from typing import Literal

from ivt2.checkpoint.keymaps.rules import Drop, Section

POSITION_TABLES = r"((vision_encoder|encoder|clip_decoders|mae_decoders)\.)?(img_)?pos_embed(_spatial|_temporal)?"
"""Tables that may be resized: those of the encoder and of the aligning decoders, wherever a network holds them."""

WRAPPERS = ("module.", "model.", "backbone.", "encoder.", "vision_encoder.")
"""Names under which trainers hold a bare encoder."""

ALIGNING = Drop(
    r"(vision_encoder\.)?(clip_decoder\.|final_clip_decoder\.|clip_(img_)?pos_embed)",
    "aligning decoders, which only training needs",
)
RECONSTRUCTION = Drop(r"(mae_decoder\.|mae_pos_embed)", "decoders towards VideoMAE, which only pre-training needs")
IMAGE_TABLE = Drop(r"(vision_encoder\.)?img_pos_embed", "position table for images; this network averages the clips'")
CLASSIFIER = Drop(r"(fc_norm|head)\.(weight|bias)", "classification head; this network has none")


def encoder(ours: str = "", reference: str = "") -> Section:
    """The video encoder, held under ``ours`` here and under ``reference`` in the file."""
    return Section(ours, reference, ((r"^(clip_projector\.cross_attn\.[qkv])\.bias$", r"\1_bias"),))


def aligning(teacher: Literal["clip", "mae"], reference: str = "") -> Section:
    """Decoders towards a teacher, which the reference keeps in the encoder and we keep beside it."""
    return Section(
        f"{teacher}_decoders.",
        reference,
        (
            (r"^final\.", f"final_{teacher}_decoder."),
            (r"^decoders\.", f"{teacher}_decoder."),
            (r"^(img_)?pos_embed", rf"{teacher}_\1pos_embed"),
            (r"\.head\.fc1\.", ".head.0."),
            (r"\.head\.fc2\.", ".head.2."),
        ),
    )

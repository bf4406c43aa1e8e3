"""The audio encoder BEATs."""

from ivt2.checkpoint.keymaps.keymap import KeyMap
from ivt2.checkpoint.keymaps.rules import Copy, Dialect, Drop, Section


def beats(ours: str = "", reference: str = "") -> tuple[Section, ...]:
    """BEATs, held under ``ours`` here and under ``reference`` in the file; the front end has the same names in both."""
    return (
        Section(f"{ours}layers.", f"{reference}encoder.layers."),
        Section(f"{ours}encoder_norm.", f"{reference}encoder.layer_norm."),
        Section(f"{ours}pos_conv.bias", f"{reference}encoder.pos_conv.0.bias"),
        Section(f"{ours}pos_conv.parametrizations.weight.original0", f"{reference}encoder.pos_conv.0.weight_g"),
        Section(f"{ours}pos_conv.parametrizations.weight.original1", f"{reference}encoder.pos_conv.0.weight_v"),
        Section(f"{ours}relative_attention_bias.", f"{reference}encoder.layers.0.self_attn.relative_attention_bias."),
        Section(ours, reference),
    )


SHARED_POSITION_BIAS = (
    Copy(
        r"(.*encoder\.layers\.)([1-9]\d*)\.self_attn\.q_proj\.weight",
        r"\1\2.self_attn.relative_attention_bias.weight",
        r"\g<1>0.self_attn.relative_attention_bias.weight",
        group="relative-position",
    ),
)
"""All layers share the first one's bias, and the file repeats it in each."""

NEW_WEIGHT_NORM = Dialect((
    (r"(encoder\.pos_conv\.0\.)weight_g$", r"\1parametrizations.weight.original0"),
    (r"(encoder\.pos_conv\.0\.)weight_v$", r"\1parametrizations.weight.original1"),
))
"""torch 2 renamed the two factors of a weight-normalised convolution."""

GATES = Drop(
    r"(audio_encoder\.)?encoder\.layers\.\d+\.self_attn\.grep_(a$|linear\.)",
    "gates of relative positions; this network has none",
)
"""The reference builds them even where there are no relative positions to act on."""

BEATS = KeyMap(
    name="beats",
    version=1,
    sections=beats(),
    drops=(GATES,),
    copies=SHARED_POSITION_BIAS,
    dialects=(NEW_WEIGHT_NORM,),
)
"""BEATs by itself: Microsoft's checkpoint (``BEATs_iter3_plus_AS2M.pt``, under ``model`` beside ``cfg``) or the bare
``audio_6b.pth`` of stage 2."""

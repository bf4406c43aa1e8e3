"""Text encoders: BERT, MobileCLIP's and InternVL's LLaMA."""

from ivt2.checkpoint.keymaps.keymap import KeyMap
from ivt2.checkpoint.keymaps.rules import Axis, Copy, Dialect, Drop, Positions, Renames, Section

_BERT_BODY: Renames = (
    (r"^embedding\.(word|position|token_type)\.", r"embeddings.\1_embeddings."),
    (r"^embedding\.norm\.", "embeddings.LayerNorm."),
    (r"^pooler\.", "pooler.dense."),
    (r"^layers\.", "encoder.layer."),
    (r"\.self_attention\.", ".attention."),
    (r"\.cross_attention\.", ".crossattention."),
    (r"attention\.(query|key|value)\.", r"attention.self.\1."),
    (r"attention\.output\.", "attention.output.dense."),
    (r"attention\.norm\.", "attention.output.LayerNorm."),
    (r"\.feed_forward\.fc1\.", ".intermediate.dense."),
    (r"\.feed_forward\.fc2\.", ".output.dense."),
    (r"\.feed_forward\.norm\.", ".output.LayerNorm."),
)
_BERT_HEAD: Renames = ((r"^dense\.", "transform.dense."), (r"^norm\.", "transform.LayerNorm."))


def bert(ours: str = "", reference: str = "", *, body: str = "bert.") -> tuple[Section, ...]:
    """BERT with or without its head, held under ``ours`` here and under ``reference`` in the file.

    ``body`` comes before all but the head; a bare ``BertModel`` has it empty.
    """
    return (
        Section(f"{ours}masked_lm_head.", f"{reference}cls.predictions.", _BERT_HEAD),
        Section(ours, reference + body, _BERT_BODY),
    )


def bert_copies(reference: str = "", *, group: str = "masked-lm") -> tuple[Copy, ...]:
    """The head's decoder, which shares the word embedding and the head's bias."""
    bias = rf"({reference})cls\.predictions\.bias"
    decoder = r"\1cls.predictions.decoder."
    return (
        Copy(bias, f"{decoder}weight", r"\1bert.embeddings.word_embeddings.weight", group),
        Copy(bias, f"{decoder}bias", r"\1cls.predictions.bias", group),
    )


BERT_POSITIONS = (Positions(r"(.*)embeddings\.position_embeddings\.weight", r"\1embeddings.position_ids"),)

BERT = KeyMap(
    name="bert",
    version=1,
    provides=r"(?!.*\.cross_attention\.)",
    sections=bert(),
    drops=(
        Drop(r"(bert\.)?pooler\.", "pooler, which stage 2 does not use"),
        Drop(r"cls\.seq_relationship\.", "head for the order of sentences"),
        Drop(r"cls\.predictions\.", "head of masked language modelling; this network has none"),
    ),
    copies=(bert_copies(group="weight")[0], bert_copies(group="bias")[1]),
    positions=BERT_POSITIONS,
    dialects=(
        Dialect(((r"^bert\.", ""),)),
        Dialect(((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))),
    ),
)
"""BERT as on the hub (``bert-large-uncased``), pre-trained on text: cross-attention is not in it and stays as it was.

Old exports from TensorFlow say ``gamma`` and ``beta``, and have the decoder's weight without its bias; newer ones leave
out the decoder and ``position_ids``; a bare ``BertModel`` has no ``bert.`` before its names.
"""

MOBILECLIP_RENAMES: Renames = (
    (r"^embedding\.weight$", "embedding_layer.weight"),
    (r"^pos_embed$", "positional_embedding.pos_embed.pos_embed"),
    (r"^norm\.", "final_layer_norm."),
    (r"^projection$", "projection_layer"),
    (r"^layers\.", "transformer."),
    (r"\.norm1\.", ".pre_norm_mha.0."),
    (r"\.attn\.qkv\.", ".pre_norm_mha.1.qkv_proj."),
    (r"\.attn\.proj\.", ".pre_norm_mha.1.out_proj."),
    (r"\.norm2\.", ".pre_norm_ffn.0."),
    (r"\.mlp\.fc1\.", ".pre_norm_ffn.1."),
    (r"\.mlp\.fc2\.", ".pre_norm_ffn.4."),
)

MOBILECLIP = KeyMap(
    name="mobileclip-text",
    version=1,
    sections=(Section("", "text_encoder.", MOBILECLIP_RENAMES),),
    axes=(Axis(r"pos_embed$", 0, ours=False),),
    drops=(Drop(r"(image_encoder\.|logit_scale$)", "MobileCLIP's image encoder and temperature"),),
    dialects=(Dialect(((r"^text_encoder\.", ""),)),),
)
"""The text tower in Apple's ``mobileclip_blt.pt``, or by itself."""

PEFT_BEFORE_07 = Dialect(((r"\.base_layer\.weight$", ".weight"),))
"""peft renamed the weights under an adapter in version 0.7; InternVL's file has the names from before."""

ROTARY = Drop(r".*rotary_emb\.inv_freq$", "frequencies of the rotary positions, which are computed")

INTERNVL_VISION = Drop(r"(cls_token$|pos_embed$|patch_embed\.|blocks\.|clip_projector\.)", "vision tower of InternVL-C")
INTERNVL_TEXT = Drop(r"(transformer\.|text_projection$)", "text tower of InternVL-C")
INTERNVL_TRAINING = Drop(
    r"(logit_scale$|target_pos_embed$|mask_token$|grad_norm_square_momentum_(clip|sim)$|norm3\.)",
    "left over from the training of InternVL-C",
)
INTERNVL_QLLAMA = Drop(r"(qllama\.|query_tokens$|clip_projector2\.|itm_head\.)", "QLLaMA, which InternVL-G adds")

LLAMA = KeyMap(
    name="internvl-c-text",
    version=1,
    drops=(ROTARY, INTERNVL_VISION, INTERNVL_TRAINING, INTERNVL_QLLAMA),
    dialects=(PEFT_BEFORE_07,),
)
"""The LLaMA-7B text tower in ``internvl_c_13b_224px.pth``, with its LoRA weights.

The leftovers are those that OpenGVLab/InternVideo issue 125 lists. A network without LoRA refuses a file that has it.
"""

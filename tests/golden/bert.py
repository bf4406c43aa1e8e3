"""Reference configurations and parameter names of the text encoder, for the checks that contain one."""

import re

import torch
from torch import Tensor

from ivt2.models.bert import Bert

RENAMED = (
    (r"^bert\.", ""),
    (r"^embeddings\.(word|position|token_type)_embeddings", r"embedding.\1"),
    (r"^embeddings\.LayerNorm", "embedding.norm"),
    (r"^encoder\.layer\.", "layers."),
    (r"crossattention\.", "cross_attention."),
    (r"\.attention\.", ".self_attention."),
    (r"attention\.self\.", "attention."),
    (r"attention\.output\.dense", "attention.output"),
    (r"attention\.output\.LayerNorm", "attention.norm"),
    (r"(\d)\.intermediate\.dense", r"\1.feed_forward.fc1"),
    (r"(\d)\.output\.dense", r"\1.feed_forward.fc2"),
    (r"(\d)\.output\.LayerNorm", r"\1.feed_forward.norm"),
    (r"^cls\.predictions\.transform\.LayerNorm", "masked_lm_head.norm"),
    (r"^cls\.predictions\.transform\.dense", "masked_lm_head.dense"),
    (r"^cls\.predictions\.bias", "masked_lm_head.bias"),
    (r"^pooler\.dense", "pooler"),
)
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def rename_bert(name: str) -> str:
    """Our name of a reference parameter."""
    for pattern, ours in RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def untie(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The state without the second names of shared tensors and without the positions 0, 1, 2, ..., no weight."""
    for copy, original in TIED.items():
        if f"{prefix}{copy}" in state:
            assert torch.equal(state.pop(f"{prefix}{copy}"), state[f"{prefix}{original}"]), f"{copy} is not tied"
    return {name: value for name, value in state.items() if not name.endswith("position_ids")}


def build_bert(config: dict, *, fusion_layer: int | None = None, pooler: bool = False, masked_lm: bool = True) -> Bert:
    """The text encoder that a reference configuration describes, in eval mode; ``fusion_layer`` cuts it off there."""
    return Bert(
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"] if fusion_layer is None else fusion_layer,
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        fusion_layer=config["fusion_layer"] if fusion_layer is None else fusion_layer,
        encoder_width=config["encoder_width"],
        layer_norm_eps=config["layer_norm_eps"],
        dropout=config["hidden_dropout_prob"],
        attention_dropout=config["attention_probs_dropout_prob"],
        type_vocab_size=config["type_vocab_size"],
        pad_id=config["pad_token_id"],
        pooler=pooler,
        masked_lm=masked_lm,
    ).eval()

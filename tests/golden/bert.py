"""Reference configurations and parameter names of the text encoder, for the checks that contain one."""

from functools import cache

import torch
from torch import Tensor

from ivt2.checkpoint.keymaps.text import BERT
from ivt2.models.bert import Bert
from ivt2.models.published import bert_large

TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


@cache
def _names() -> dict[str, str]:
    """Our names by the reference's, of a network that has every part."""
    with torch.device("meta"):
        network = bert_large(fusion_layer=0, pooler=True)
    return {BERT.to_reference(name): name for name in network.state_dict()}


def rename_bert(name: str) -> str:
    """Our name of a reference parameter, with or without the wrapper's ``bert.``."""
    names = _names()
    return names[name] if name in names else names[f"bert.{name}"]


def untie(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The state without the second names of shared tensors and without the positions 0, 1, 2, ..., no weight."""
    for copy, original in TIED.items():
        if f"{prefix}{copy}" in state:
            assert torch.equal(state.pop(f"{prefix}{copy}"), state[f"{prefix}{original}"]), f"{copy} is not tied"
    return {name: value for name, value in state.items() if not name.endswith("position_ids")}


def build_bert(
    config: dict,
    *,
    fusion_layer: int | None = None,
    pooler: bool = False,
    masked_lm: bool = True,
    packed: bool = True,
) -> Bert:
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
        packed=packed,
    ).eval()

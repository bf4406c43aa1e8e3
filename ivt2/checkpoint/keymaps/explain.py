"""Why a file does not fit a network, where its keys tell."""

import re
from collections.abc import Collection, Mapping

from ivt2.checkpoint.keymaps.rules import Shape

_LAYOUTS = (
    (r"mae_decoder\.", "a stage-1 pretraining file"),
    (r"text_encoder\.(bert\.)?encoder\.layer\.", "a stage-2 file"),
    (r"(text_encoder\.)?transformer\.layers\.\d+\.self_attn\.", "a file with the LLaMA text tower"),
    (r"text_encoder\.(embedding_layer|transformer\.\d+)\.", "a file with the MobileCLIP text tower"),
    (r"(audio_encoder\.)?encoder\.pos_conv\.", "a BEATs file"),
    (r"(bert\.)?encoder\.layer\.", "a BERT file"),
    (r"clip_decoder\.", "a distilled student"),
    (r"extra_mlp\.", "a classifier with the attentive probe's head"),
    (r"down_norm\.", "a classifier with the concatenating head"),
    (r"fc_norm\.", "a classifier"),
    (r"(encoder\.)?blocks\.\d+\.attn\.q_bias", "a VideoMAE encoder"),
    (r"blocks\.\d+\.attn\.q_norm\.", "a bare video encoder"),
    (r"vision_encoder\.clip_projector\.", "weights on top of a base, as the CLIP files are"),
)
"""The first pattern that matches the beginning of a key tells the kind of file."""


def explain(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """What is likely wrong, and the remedy.

    Args:
        expected: Shapes by the keys that a file of the network has.
        found: Those of the file.
    """
    hints = []
    width, other_width = _width(expected), _width(found)
    depth, other_depth = _depth(expected), _depth(found)
    if (width, depth) != (other_width, other_depth) and width and other_width:
        hints.append(
            f"the file has {other_depth} blocks of width {other_width}, the network {depth} of width {width}: "
            "choose the network of that size"
        )
    adapted, other_adapted = (any("lora_" in key for key in keys) for keys in (expected, found))
    if adapted != other_adapted:
        hints.append(
            "the network has LoRA adapters and the file has none: build it without"
            if adapted
            else "the file has LoRA adapters: build the network with them, they change what the text encoder computes"
        )
    if 2 * len(expected.keys() & found.keys()) < len(expected):
        kind = _kind(found)
        hints.append(f"the file looks like {kind}" if kind else "the file is of no kind known here")
    return "; ".join([*hints, "nothing was loaded: give the file that belongs to this network"])


def _kind(keys: Collection[str]) -> str | None:
    return next((kind for pattern, kind in _LAYOUTS if any(re.match(pattern, key) for key in keys)), None)


def _width(shapes: Mapping[str, Shape]) -> int | None:
    return next((shape[0] for key, shape in shapes.items() if re.search(r"\bblocks\.0\.norm1\.weight$", key)), None)


def _depth(keys: Collection[str]) -> int:
    return len({match[1] for key in keys if (match := re.search(r"\bblocks\.(\d+)\.", key))})

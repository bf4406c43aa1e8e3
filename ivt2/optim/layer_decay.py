"""Layer-wise decay of the learning rate: the deeper a layer lies below the head, the slower it learns."""

import re
from dataclasses import dataclass

from ivt2.errors import InputError

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_BOTTOM = re.compile(r"(?:cls_token|(?:img_)?pos_embed|patch_embed\..+)$")
_SEPARABLE = re.compile(r"pos_embed_(?:spatial|temporal|cls)$")


@dataclass(frozen=True)
class LayerDecay:
    """Layer of a parameter, by its name, and the scale of the learning rate there.

    Layer 0 holds the encoder's class token, position tables and patch embedding, layer i + 1 its block i, and layer
    ``depth + 1`` everything else: pooling, decoders with tables of their own, head. The scale of layer l is
    ``factor ** (depth + 1 - l)``.

    Args:
        factor: ratio of the rates of two neighbouring layers, in (0, 1]; 1 means no layer decay.
        depth: blocks of the encoder.
        encoder: name of the encoder in the model.
        separable_tables_on_top: count the separable position tables to the last layer. The reference does so by
            accident: its list knows the joint table only.

    Raises:
        InputError: if ``factor`` is out of range.

    Source: reference single_modality, optimizer of fine-tuning (layer ids of a vision transformer).
    """

    factor: float
    depth: int
    encoder: str = "encoder"
    separable_tables_on_top: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise InputError(f"layer decay of {self.factor} is outside (0, 1]: give 1 for none")

    def layer(self, name: str) -> int:
        """Number of the layer that the parameter of this name belongs to, from 0 to ``depth + 1``.

        Raises:
            InputError: if the name is of a block that an encoder of this depth does not have.
        """
        inner = name.removeprefix(f"{self.encoder}.")
        if inner == name:
            return self.depth + 1
        block = _BLOCK.match(inner)
        if block is not None:
            if int(block[1]) >= self.depth:
                raise InputError(f"layer decay over {self.depth} blocks, but there is {name}: give the encoder's depth")
            return int(block[1]) + 1
        if _BOTTOM.match(inner) or (_SEPARABLE.match(inner) and not self.separable_tables_on_top):
            return 0
        return self.depth + 1

    def scale(self, layer: int) -> float:
        """Factor of the learning rate in a layer, in (0, 1]."""
        return self.factor ** (self.depth + 1 - layer)

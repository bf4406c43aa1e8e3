"""Start of the weights of the vision networks."""

from torch import nn

from ivt2.nn.block import LayerScale
from ivt2.nn.norm import RMSNorm


def init_weights(module: nn.Module) -> None:
    """Linear weights N(0, 0.02) and biases 0; norms, LayerScale and convolutions their own start.

    Args:
        module: Any module, as ``Module.apply`` passes them; other kinds are left alone.

    Source: reference, ``_init_weights`` (it runs over decoders too and so replaces their own start).
    """
    match module:
        case nn.Linear():
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        case nn.LayerNorm() | RMSNorm() | LayerScale() | nn.Conv3d():
            module.reset_parameters()

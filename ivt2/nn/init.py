"""Start of the weights of the vision networks."""

from torch import nn

from ivt2.nn.block import LayerScale
from ivt2.nn.norm import RMSNorm


def init_weights(module: nn.Module, *, std: float = 0.02) -> None:
    """Linear weights N(0, std) and biases 0; norms, LayerScale and convolutions their own start.

    Args:
        module: Any module, as ``Module.apply`` passes them; other kinds are left alone.
        std: Standard deviation of the linear weights; the reference's suits widths of about 1000.

    Source: reference, ``_init_weights`` (it runs over decoders too and so replaces their own start).
    """
    match module:
        case nn.Linear():
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        case nn.LayerNorm() | RMSNorm() | LayerScale() | nn.Conv3d():
            module.reset_parameters()

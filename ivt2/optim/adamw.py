"""AdamW whose steps are fused."""

from collections.abc import Iterable
from typing import Any

from torch.optim import AdamW


def adamw(
    params: Iterable[Any],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    fused: bool = True,
) -> AdamW:
    """Torch's AdamW, which on CPUs and GPUs updates each parameter in one pass.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the running mean and mean square of the gradient, each in [0, 1).
        eps: added to the root of the mean square.
        weight_decay: share of the weights that a step takes away at ``lr`` 1, where a group does not say.
        fused: whether one pass updates everything; False takes torch's own choice, for devices without that.
    """
    optimizer = AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused or None)
    # A fused step could undo the scaling of float16 gradients by itself, which Lightning takes for a reason to refuse
    # clipping, in bfloat16 too. Scalers that do not find this flag undo it before, as for any optimizer.
    optimizer._step_supports_amp_scaling = False
    return optimizer

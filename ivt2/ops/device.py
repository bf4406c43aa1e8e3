"""Where tensors can be."""

import torch

from ivt2.errors import InputError


def usable_device(name: str | torch.device) -> torch.device:
    """A device that tensors can be put on and taken from.

    Args:
        name: such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        InputError: there is none of that name here.
    """
    try:
        torch.empty(1, device=name).cpu()
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA asserts that it has none
        raise InputError(f"device={name}: not usable here ({str(error).splitlines()[0]}); use cpu") from error
    return torch.device(name)

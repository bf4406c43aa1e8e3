"""Sharded parameters by torch's ``fully_shard`` (one unit for each block, one for the rest), and what a rank holds."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor


def shard(model: nn.Module, mesh: DeviceMesh, *, units: Iterable[nn.Module], methods: Iterable[str]) -> None:
    """Cut the parameters of ``model`` over the ranks of ``mesh``; does nothing if that was done before.

    Args:
        model: the network.
        mesh: one-dimensional mesh of ranks.
        units: its blocks, each of which is gathered alone, while it is needed. Methods of theirs that read parameters,
            beside ``forward``, are named by their ``ENTRY_POINTS``.
        methods: names of methods of ``model`` that read parameters; called by itself, each gathers what it needs.
    """
    if isinstance(model, FSDPModule):
        return
    for unit in units:
        fully_shard(unit, mesh=mesh)
        for method in getattr(unit, "ENTRY_POINTS", ()):
            register_fsdp_forward_method(unit, method)
    fully_shard(model, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(model, method)


def local_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

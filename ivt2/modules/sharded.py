"""Lightning's engine of sharded parameters, set up for data parallelism alone."""

from lightning.pytorch.strategies import ModelParallelStrategy
from typing_extensions import override


class FullyShardedStrategy(ModelParallelStrategy):
    """Parameters are cut over all ranks of all nodes, and every rank has data of its own.

    Lightning's own default makes the devices of a node tensor-parallel, so that they would all get the same data.

    Args:
        save_distributed_checkpoint: write a folder to which every rank adds its part; False collects all in one file.
    """

    def __init__(self, *, save_distributed_checkpoint: bool = True) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)

    @override
    def setup_environment(self) -> None:
        # Known only here, after the Trainer has read its devices.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

"""Lightning's checkpoints as verified folders without pickle."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO
from typing_extensions import override

from ivt2.checkpoint import discard, load_checkpoint, save_checkpoint
from ivt2.errors import InputError

CONFIG_KEY = "ivt2_config"
RUN_KEY = "ivt2_mlflow_run"
WEIGHTS_KEY = "weights_only"

_FACTS = {
    "epoch": "epoch",
    "global_step": "global_step",
    "pytorch-lightning_version": "lightning",
    RUN_KEY: RUN_KEY,
    WEIGHTS_KEY: WEIGHTS_KEY,
}


class DirectoryCheckpointIO(CheckpointIO):
    """Stores what Lightning would pickle through ``ivt2.checkpoint``; give it to ``Trainer(plugins=[...])``.

    Every rank reads and verifies the whole checkpoint, rank 0 alone writes and removes. The strategy for sharded
    models does not use it: it writes its own directory.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write Lightning's state to the folder ``path``.

        Raises:
            TypeError: A part of the state cannot be stored (the message names it), or storage options are given.
            InputError: The path is not on a local disk, or the disk is full.
        """
        if storage_options is not None:
            raise TypeError("DirectoryCheckpointIO takes no storage options")
        facts = {name: checkpoint[key] for key, name in _FACTS.items() if key in checkpoint}
        save_checkpoint(_local(path), checkpoint, config=checkpoint.get(CONFIG_KEY), metadata=facts)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a folder back, tensors on the CPU; Lightning moves them where they belong.

        ``map_location`` and ``weights_only`` say how to unpickle; there is nothing to unpickle.

        Raises:
            InputError: Not a checkpoint, or damaged.
        """
        return load_checkpoint(_local(path))

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the folder."""
        discard(_local(path))


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise InputError(f"{path}: checkpoints are written to and read from a local folder; choose one")
    return Path(path)

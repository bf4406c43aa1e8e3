"""Teachers with weights from a file: a converted release, or a run of this package."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ivt2.checkpoint.folder import STATE, read_weights
from ivt2.checkpoint.released import load_released
from ivt2.checkpoint.weights import fill, require_same_architecture
from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.teacher import Teacher
from ivt2.models.videomae import VideoMAE

_LOG = logging.getLogger(__name__)


def load_teacher(
    teacher: Callable[[InternVideo2 | VideoMAE], Teacher],
    encoder: Callable[[], InternVideo2 | VideoMAE],
    *,
    weights: str | None = None,
    prefix: str = "",
) -> Teacher:
    """A frozen teacher that knows what a file knows.

    Where tensors are made without memory (``torch.device("meta")``) the files are not read: such a model is a plan.

    Args:
        teacher: Makes the teacher from its encoder.
        encoder: Makes the encoder; called where nothing is allocated if there are weights, so that these are in memory
            once.
        weights: Folder that ``python -m ivt2.cli.convert`` wrote, or a checkpoint of ``train.py``, whose numbers keep
            their own format; position tables of a release are resized to the encoder's frames. None leaves the weights
            random and says so in the log: such a teacher is good for measuring speed, and for trying things out.
        prefix: Where the encoder stands in the folder, such as ``"vision_encoder."`` of stage 2 or
            ``"student.encoder."`` of a run of stage 1.

    Raises:
        InputError: The folder is missing or damaged, or does not hold exactly this encoder.
    """
    if weights is None:
        made = teacher(encoder())
        _LOG.warning(
            "%s has random weights: what it says means nothing; give its weights=<folder>", type(made).__name__
        )
        return made
    if torch.empty(0).is_meta:
        return teacher(encoder())
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        remedy = "convert it with python -m ivt2.cli.convert, then give the teacher weights=<that folder>"
        raise InputError(f"teacher's weights={folder}: {kind}; {remedy}")
    with torch.device("meta"):
        network = encoder()
    if (folder / STATE).is_file():
        require_same_architecture(network, folder, prefix=prefix)
        fill(network, _values(network, folder, prefix))
    else:
        load_released(folder, network, prefix=prefix, num_frames=network.grid_frames)
    return teacher(network)


def _values(network: InternVideo2 | VideoMAE, folder: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Copies: what a checkpoint's file backs may be replaced while the teacher is in use."""
    stored = read_weights(folder)
    for name in network.state_dict():
        yield name, stored[prefix + name].clone()

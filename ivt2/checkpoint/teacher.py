"""Teachers with weights from a file: a converted release, or a run of this package."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

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

TeacherDtype = Literal["float32", "bfloat16"]


def load_teacher(
    teacher: Callable[[InternVideo2 | VideoMAE], Teacher],
    encoder: Callable[[], InternVideo2 | VideoMAE],
    *,
    weights: str | None = None,
    prefix: str = "",
    dtype: TeacherDtype = "bfloat16",
    compile: bool = False,
) -> Teacher:
    """A frozen teacher that knows what a file knows.

    Where tensors are made without memory (``torch.device("meta")``) the files are not read: such a model is a plan.

    Args:
        teacher: Makes the teacher from its encoder.
        encoder: Makes the encoder; called where nothing is allocated if there are weights, so that these are in memory
            once.
        weights: Folder that ``python -m ivt2.cli.convert`` wrote, or a checkpoint of ``train.py``; position tables of a
            release are resized to the encoder's frames. None leaves the weights random and says so in the log: such a
            teacher is good for measuring speed, and for trying things out.
        prefix: Where the encoder stands in the folder, such as ``"vision_encoder."`` of stage 2 or
            ``"student.encoder."`` of a run of stage 1.
        dtype: Number format of weights and activations, whatever the Trainer's precision.
        compile: Whether each block is compiled when it runs for the first time.

    Raises:
        InputError: The folder is missing or damaged, or does not hold exactly this encoder.
    """
    made = teacher(_encoder(encoder, weights, prefix)).to(getattr(torch, dtype))
    if weights is None:
        _LOG.warning(
            "%s has random weights: what it says means nothing; give its weights=<folder>", type(made).__name__
        )
    if compile:
        for block in made.encoder.blocks:
            block.compile()
    return made


def _encoder(make: Callable[[], InternVideo2 | VideoMAE], weights: str | None, prefix: str) -> InternVideo2 | VideoMAE:
    """The encoder with the file's numbers in the file's format."""
    if weights is None or torch.empty(0).is_meta:
        return make()
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        remedy = "convert it with python -m ivt2.cli.convert, then give the teacher weights=<that folder>"
        raise InputError(f"teacher's weights={folder}: {kind}; {remedy}")
    with torch.device("meta"):
        network = make()
    if (folder / STATE).is_file():
        require_same_architecture(network, folder, prefix=prefix)
        fill(network, _values(network, folder, prefix))
    else:
        load_released(folder, network, prefix=prefix, num_frames=network.grid_frames)
    return network


def _values(network: InternVideo2 | VideoMAE, folder: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Copies: what a checkpoint's file backs may be replaced while the teacher is in use."""
    stored = read_weights(folder)
    for name in network.state_dict():
        yield name, stored[prefix + name].clone()

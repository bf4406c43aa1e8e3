"""Teachers with weights from a file: a converted release, or a run of this package."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ivt2.checkpoint.feature_cache import CachedTeacher
from ivt2.checkpoint.folder import STATE, read_weights
from ivt2.checkpoint.released import load_released
from ivt2.checkpoint.weights import fill, find_weights, require_same_architecture
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.teacher import Teacher, TeacherDtype
from ivt2.models.videomae import VideoMAE

_LOG = logging.getLogger(__name__)


def load_teacher(
    teacher: Callable[[InternVideo2 | VideoMAE], Teacher],
    encoder: Callable[[], InternVideo2 | VideoMAE],
    *,
    weights: str | None = None,
    prefix: str = "",
    dtype: TeacherDtype = "bfloat16",
    compile: bool = False,
    min_cosine: float = 0.999,
    cache: str | None = None,
    cache_gib: float = 100.0,
) -> Teacher:
    """A frozen teacher that knows what a file knows.

    Where tensors are made without memory (``torch.device("meta")``) the files are not read: such a model is a plan.

    Args:
        teacher: Makes the teacher from its encoder.
        encoder: Makes the encoder; called where nothing is allocated if there are weights, so that these are in memory
            once.
        weights: Folder that ``python -m ivt2.cli.convert`` wrote, or a checkpoint of ``train.py``, or the folder of a
            run, whose newest checkpoint that verifies is taken; position tables of a release are resized to the
            encoder's frames. None leaves the weights random and says so in the log: such a teacher is good for
            measuring speed, and for trying things out.
        prefix: Where the encoder stands in the folder, such as ``"vision_encoder."`` of stage 2 or
            ``"student.encoder."`` of a run of stage 1.
        dtype: Number format, whatever the Trainer's precision; see :meth:`Teacher.set_format`.
        compile: Whether each block is compiled when it runs for the first time.
        min_cosine: How close ``float8`` must be to bfloat16 on the first clips, else it is refused.
        cache: Folder that keeps what the teacher said about each clip; it needs transforms and frames without chance.
            See :class:`CachedTeacher`.
        cache_gib: Room of this teacher there, in GiB.

    Raises:
        InputError: The folder is missing or damaged, or does not hold exactly this encoder; or the cache cannot be
            written.
    """
    made = teacher(_encoder(encoder, weights, prefix)).set_format(dtype, compile=compile, min_cosine=min_cosine)
    if weights is None:
        _LOG.warning(
            "%s has random weights: what it says means nothing; give its weights=<folder>", type(made).__name__
        )
    if cache is None or torch.empty(0).is_meta:
        return made
    return CachedTeacher(made, Path(cache).expanduser(), max_gib=cache_gib)


def _encoder(make: Callable[[], InternVideo2 | VideoMAE], weights: str | None, prefix: str) -> InternVideo2 | VideoMAE:
    """The encoder with the file's numbers in the file's format."""
    if weights is None or torch.empty(0).is_meta:
        return make()
    folder = find_weights(Path(weights).expanduser(), what="teacher's weights")
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

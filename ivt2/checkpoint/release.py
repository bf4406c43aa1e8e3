"""What was published: which files make up a network, and how their keys become ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ivt2.checkpoint.keymaps.keymap import KeyMap

Modality = Literal["video", "image", "audio", "text"]


@dataclass(frozen=True)
class Part:
    """One file of a release.

    A release of several parts is assembled in their order; a later part may replace weights of an earlier one, as a
    delta does with its base.
    """

    name: str
    """What the file holds, in the words of the command line: ``model``, ``vision``, ``text``, ``delta``."""
    key_map: KeyMap
    """How its keys become ours, and which of our weights it must provide."""
    file: str
    """Path inside the repository."""
    source: str
    """Repository on the Hugging Face hub, or the page that tells where the file is."""
    licence: str
    """As the publisher states it; ``not stated`` where it does not."""
    num_bytes: int | None = None
    """Size of the published file where it is known."""
    num_frames: int | None = None
    """Temporal positions of the position tables in the file; None where it has none."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a network is, reads and gives."""

    name: str
    title: str
    modalities: tuple[Modality, ...]
    num_frames: int
    """Frames of a clip."""
    image_size: int
    """Side of a frame in pixels."""
    dim: int
    """Width of the features that are compared, or of the pooled feature."""
    tokenizer: Literal["bert", "llama", "clip"] | None = None
    tasks: str = ""
    """What it is good for, and what it cannot do."""
    num_mels: int | None = None
    """Mel bins of the sound that it reads, ten seconds of it; None where it reads none."""


@dataclass(frozen=True, kw_only=True)
class Release(Card):
    """A published network.

    ``build`` gets the number of frames and the side of a frame in pixels; called under ``torch.device("meta")`` it
    allocates nothing.
    """

    build: Callable[[int, int], nn.Module]
    parts: tuple[Part, ...]

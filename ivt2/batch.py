"""What datamodules promise and modules expect, and one legend of letters for the whole package.

Letters in shape annotations: B clips, T frames, C channels, H W pixels, N visual tokens, L text tokens, D width,
K aligned layers, S audio steps, F frames and M mel bins of a sound, Q queries, P proposals, A answers; before L,
M captions (several for each clip).
Booleans say what is true: ``masked`` is True where a token is hidden, ``valid`` where a text token is real.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

Medium = Literal["image", "video", "audio", "audio_video"]
"""What the clips of a source are; ``audio_video`` is a video with its sound."""


class Vocabulary(NamedTuple):
    """Facts of a tokenizer that a network and its losses depend on; an id is -1 where it has no such token."""

    size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int


class Skipped(NamedTuple):
    """A sample that could not be used, and why."""

    source: str
    key: str
    reason: str
    shard: str = ""
    """File that the sample lies in; empty where it is not in a shard."""


class TextTokens(NamedTuple):
    """Captions as ids, one for each clip of a batch."""

    input_ids: Int64[Tensor, "B L"]
    valid: Bool[Tensor, "B L"]
    """True where a text token is real (not padding)."""


class MediaTextBatch(TypedDict):
    """One training step of clips with one caption each, all of one source and so of one medium."""

    video: NotRequired[UInt8[Tensor, "B T C H W"]]
    """Pixels in RGB, 0 to 255; an image has T = 1. The encoder normalises them on the device. Absent for ``audio``."""
    audio: NotRequired[Float32[Tensor, "B F M"]]
    """Ten seconds of sound: log-mel energies in the range that BEATs reads, zeros where there is no sound.

    Only for ``audio`` and ``audio_video``.
    """
    input_ids: Int64[Tensor, "B L"]
    valid: Bool[Tensor, "B L"]
    """True where a text token is real (not padding)."""
    texts: NotRequired[dict[str, TextTokens]]
    """A caption of each kind that the source was asked for, such as ``video``, ``audio`` and ``fused``."""
    sample_id: Int64[Tensor, "B"]
    """Identity of the clip over all sources: captions of one clip are positives of each other."""
    seed: Int64[Tensor, "B"]
    """Pure function of (seed, epoch, sample): the key of every random choice made about this sample."""
    key: list[str]
    medium: Medium
    source: str
    skipped: list[Skipped]
    """Samples of this step that could not be used; the batch is shorter by as many."""


class RetrievalBatch(TypedDict):
    """Clips with all captions that an evaluation ranks; captions of the B clips stand one after the other."""

    video: NotRequired[UInt8[Tensor, "B T C H W"]]
    """As in ``MediaTextBatch``."""
    audio: NotRequired[Float32[Tensor, "B F M"]]
    """As in ``MediaTextBatch``."""
    index: Int64[Tensor, "B"]
    """Position of each clip in the evaluation set: says which clip it is, whatever rank or order it came in."""
    input_ids: Int64[Tensor, "M L"]
    valid: Bool[Tensor, "M L"]
    clip_of_caption: Int64[Tensor, "M"]
    """``index`` of the clip that each caption describes."""
    caption: list[str]
    key: list[str]
    medium: Medium
    source: str
    skipped: list[Skipped]


class ClipBatch(TypedDict):
    """Clips without text, all of one source: a step of masked learning, or a part of a labelled set."""

    video: UInt8[Tensor, "B T C H W"]
    """As in ``MediaTextBatch``."""
    sample_id: Int64[Tensor, "B"]
    """Identity of the clip over all training sources; in an evaluation set its position."""
    seed: Int64[Tensor, "B"]
    """Pure function of (seed, epoch, sample): the key of every random choice made about this sample."""
    label: Int64[Tensor, "B"]
    """Number of the class, -1 where there is none."""
    key: list[str]
    source: str
    skipped: list[Skipped]
    """Samples of this step that could not be used; the batch is shorter by as many."""


class TextDataModule(Protocol):
    """What a module may ask of a datamodule that tokenizes text."""

    vocabulary: Vocabulary
    media: Mapping[str, Medium]
    """What the sources of the stage hold, by their place in the configuration, such as ``train.webvid``."""

    @property
    def caption_kinds(self) -> Mapping[str, tuple[str, ...]]:
        """Kinds of captions that stand in ``texts`` of batches of each training source, by the same places."""

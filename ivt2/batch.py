"""What datamodules promise and modules expect, and one legend of letters for the whole package.

Letters in shape annotations: B clips, T frames, C channels, H W pixels, N visual tokens, L text tokens, D width,
K aligned layers, S audio steps, Q queries, P proposals, A answers, M captions (several for each clip).
Booleans say what is true: ``masked`` is True where a token is hidden, ``valid`` where a text token is real.
"""

from typing import NamedTuple, Protocol, TypedDict

from jaxtyping import Bool, Int64, UInt8
from torch import Tensor


class Vocabulary(NamedTuple):
    """Facts of a tokenizer that a network and its losses depend on."""

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


class MediaTextBatch(TypedDict):
    """One training step of clips with one caption each, all of one source."""

    video: UInt8[Tensor, "B T C H W"]
    """Pixels in RGB, 0 to 255; an image has T = 1. The encoder normalises them on the device."""
    input_ids: Int64[Tensor, "B L"]
    valid: Bool[Tensor, "B L"]
    """True where a text token is real (not padding)."""
    sample_id: Int64[Tensor, "B"]
    """Identity of the clip over all sources: captions of one clip are positives of each other."""
    seed: Int64[Tensor, "B"]
    """Pure function of (seed, epoch, sample): the key of every random choice made about this sample."""
    key: list[str]
    source: str
    skipped: list[Skipped]
    """Samples of this step that could not be used; the batch is shorter by as many."""


class RetrievalBatch(TypedDict):
    """Clips with all captions that an evaluation ranks; captions of the B clips stand one after the other."""

    video: UInt8[Tensor, "B T C H W"]
    index: Int64[Tensor, "B"]
    """Position of each clip in the evaluation set: says which clip it is, whatever rank or order it came in."""
    input_ids: Int64[Tensor, "M L"]
    valid: Bool[Tensor, "M L"]
    clip_of_caption: Int64[Tensor, "M"]
    """``index`` of the clip that each caption describes."""
    caption: list[str]
    key: list[str]
    source: str
    skipped: list[Skipped]


class TextDataModule(Protocol):
    """What a module may ask of a datamodule that tokenizes text."""

    vocabulary: Vocabulary

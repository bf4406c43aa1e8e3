"""Figures drawn from arrays. Text of the data is drawn as it stands: never as a formula."""

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

from ivt2.metrics.retrieval import RetrievalResult

_MAX_CLIPS = 200
_MAX_FRAMES = 8
_GREY = 128
_RIGHT = "tab:green"
_CAPTION_CHARACTERS = 140
_LINE_CHARACTERS = 28


class Found(NamedTuple):
    """What one caption found."""

    caption: str
    frames: Sequence[UInt8[np.ndarray, "H W C"] | None]
    """Best first; None where the frame was not kept."""
    right: Sequence[bool]


def plain(text: str, characters: int = _CAPTION_CHARACTERS) -> str:
    """Text in one line, without control characters and without letters that the figure's font lacks."""
    known = _letters_of_font()
    shown = "".join(letter if letter.isprintable() and ord(letter) in known else " " for letter in text)
    return textwrap.shorten(shown, characters, placeholder="...") or "?"


def draw_similarity(result: RetrievalResult, dataset: str) -> Figure:
    """Similarity of clips (rows) with one caption of each (columns); a perfect match is a bright diagonal."""
    num_clips = len(result.similarity)
    rows = np.unique(np.linspace(0, num_clips - 1, min(num_clips, _MAX_CLIPS)).round().astype(int))
    clip_of_caption = result.clip_of_caption.numpy()
    first = {int(clip): column for column, clip in reversed(list(enumerate(clip_of_caption)))}
    rows = np.array([row for row in rows if int(row) in first])
    matrix = result.similarity.numpy()[np.ix_(rows, [first[int(row)] for row in rows])]
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(matrix, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="cosine")
    axes.set_xlabel("caption")
    axes.set_ylabel("clip")
    recall = result.metrics["raw"]["t2v_r1"]
    shown = f"{len(rows)} of {num_clips} clips"
    axes.set_title(f"{plain(dataset)}: {shown}, text-to-video R@1 {recall:.1f}", parse_math=False)
    return figure


def draw_queries(finds: Sequence[Found]) -> Figure:
    """One row per caption: its text, then the clips it finds, the right one outlined."""
    columns = 1 + max(len(found.frames) for found in finds)
    figure = Figure(figsize=(1.6 * (columns + 1), 1.5 * len(finds)), layout="constrained")
    grid = figure.subplots(len(finds), columns, squeeze=False, gridspec_kw={"width_ratios": [2] + [1] * (columns - 1)})
    for row, found in zip(grid, finds, strict=True):
        for axes in row:
            axes.set_axis_off()
        words = "\n".join(textwrap.wrap(plain(found.caption), _LINE_CHARACTERS))
        row[0].text(0, 0.5, words, va="center", fontsize=8, parse_math=False, transform=row[0].transAxes)
        for axes, frame, right in zip(row[1:], found.frames, found.right, strict=False):
            _show_frame(axes, frame, right=right)
    return figure


def draw_masked_clip(video: UInt8[np.ndarray, "T C H W"], masked: Bool[np.ndarray, "N"]) -> Figure:
    """Frames of a clip above the same frames with the hidden patches grey.

    Args:
        video: Pixels, 0 to 255.
        masked: True where a patch is hidden; patches in order of frames, rows, columns.
    """
    frames = video.transpose(0, 2, 3, 1)
    hidden = spread_over_pixels(masked, frames.shape[:3])
    shown = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MAX_FRAMES)).round().astype(int))
    figure = Figure(figsize=(1.5 * len(shown), 3.3), layout="constrained")
    grid = figure.subplots(2, len(shown), squeeze=False)
    for column, frame in enumerate(shown):
        greyed = np.where(hidden[frame][..., None], _GREY, frames[frame]).astype(np.uint8)
        for axes, picture in zip(grid[:, column], (frames[frame], greyed), strict=True):
            axes.set_axis_off()
            axes.imshow(picture)
    figure.suptitle(f"{masked.mean():.0%} of the patches hidden")
    return figure


def spread_over_pixels(masked: Bool[np.ndarray, "N"], size: tuple[int, ...]) -> Bool[np.ndarray, "T H W"]:
    """Say for each pixel whether its patch is hidden.

    The square patches follow from their number; of several possible sizes the one that spans the fewest frames.

    Args:
        masked: True where hidden; patches in order of frames, rows, columns.
        size: Frames, height and width of the clip.

    Raises:
        ValueError: No square patch cuts the clip into so many.
    """
    num_frames, height, width = size
    for tubelet in (span for span in range(1, num_frames + 1) if num_frames % span == 0):
        area = num_frames // tubelet * height * width / len(masked)
        patch = math.isqrt(int(area))
        if patch and patch * patch == area and height % patch == 0 and width % patch == 0:
            grid = masked.reshape(num_frames // tubelet, height // patch, width // patch)
            return grid.repeat(tubelet, axis=0).repeat(patch, axis=1).repeat(patch, axis=2)
    raise ValueError(f"{len(masked)} square patches do not cover a clip of {num_frames}x{height}x{width}")


def _show_frame(axes: Axes, frame: UInt8[np.ndarray, "H W C"] | None, *, right: bool) -> None:
    axes.imshow(np.full((2, 2, 3), _GREY, dtype=np.uint8) if frame is None else frame)
    if right:
        axes.set_axis_on()
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(edgecolor=_RIGHT, linewidth=4)


def _letters_of_font() -> set[int]:
    return set(FT2Font(findfont(FontProperties())).get_charmap())

"""Figures drawn from arrays. Text of the data is drawn as it stands: never as a formula."""

import math
import textwrap
from collections.abc import Mapping, Sequence
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
_MAX_TICKS = 8

Curve = Sequence[tuple[int, float]]
"""Training steps and what was measured at each."""


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
    recall = result.metrics["raw"][f"t2{result.view}_r1"]
    compared = {"v": "video", "a": "audio", "av": "audio-video"}[result.view]
    shown = f"{len(rows)} of {num_clips} clips"
    axes.set_title(f"{plain(dataset)}: {shown}, text-to-{compared} R@1 {recall:.1f}", parse_math=False)
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
        masked: True where a patch is hidden; patches in order of frames, rows, columns. Where it speaks of fewer frames
            than the clip has, the first of each group is shown: the one that a student of every other frame sees.
    """
    frames = video.transpose(0, 2, 3, 1)
    hidden = spread_over_pixels(masked, frames.shape[:3])
    firsts = np.arange(0, len(frames), patch_size(len(masked), frames.shape[:3])[0])
    shown = firsts[np.unique(np.linspace(0, len(firsts) - 1, min(len(firsts), _MAX_FRAMES)).round().astype(int))]
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

    Args:
        masked: True where hidden; patches in order of frames, rows, columns.
        size: Frames, height and width of the clip.

    Raises:
        ValueError: No square patch cuts the clip into so many.
    """
    tubelet, patch = patch_size(len(masked), size)
    num_frames, height, width = size
    grid = masked.reshape(num_frames // tubelet, height // patch, width // patch)
    return grid.repeat(tubelet, axis=0).repeat(patch, axis=1).repeat(patch, axis=2)


def patch_size(num_patches: int, size: tuple[int, ...]) -> tuple[int, int]:
    """Frames and side in pixels of square patches, which follow from their number.

    Of several possible sizes the one that spans the fewest frames.

    Args:
        num_patches: Patches of the clip.
        size: Frames, height and width of the clip.

    Raises:
        ValueError: No square patch cuts the clip into so many.
    """
    num_frames, height, width = size
    for tubelet in (span for span in range(1, num_frames + 1) if num_frames % span == 0):
        area = num_frames // tubelet * height * width / num_patches
        side = math.isqrt(int(area))
        if side and side * side == area and height % side == 0 and width % side == 0:
            return tubelet, side
    raise ValueError(f"{num_patches} square patches do not cover a clip of {num_frames}x{height}x{width}")


def draw_curves(title: str, panels: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Values over training steps, panels side by side.

    Args:
        title: Above all panels.
        panels: Of each panel, by what its vertical axis shows, the curves by name.
    """
    figure = Figure(figsize=(4 * len(panels), 3.3), layout="constrained")
    for axes, (label, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, curve in curves.items():
            steps, values = zip(*curve, strict=True)
            axes.plot(steps, values, marker=".", label=plain(name))
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        for text in axes.legend(fontsize=8).get_texts() if len(curves) > 1 else ():
            text.set_parse_math(False)
    figure.suptitle(plain(title), parse_math=False)
    return figure


def draw_layers(title: str, curves: Mapping[str, Curve]) -> Figure:
    """One row of colours for each layer, one column for each step at which any of them was measured.

    Args:
        title: Above the picture.
        curves: Of each layer, top to bottom.
    """
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    values = np.array([[dict(curve).get(step, math.nan) for step in steps] for curve in curves.values()])
    figure = Figure(figsize=(7, 1.5 + 0.3 * len(curves)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="viridis", interpolation="nearest", aspect="auto")
    figure.colorbar(image, ax=axes, label="cosine")
    axes.set_yticks(range(len(curves)), [plain(name) for name in curves], parse_math=False)
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MAX_TICKS)).round().astype(int))
    axes.set_xticks(ticks, [steps[tick] for tick in ticks])
    axes.set_xlabel("step")
    axes.set_title(plain(title), parse_math=False)
    return figure


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

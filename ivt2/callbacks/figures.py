"""Pictures on the dashboard: similarities, what queries find, and what a masked clip still shows."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import override

from ivt2.callbacks.drawing import Found, draw_masked_clip, draw_queries, draw_similarity
from ivt2.callbacks.tracking import safe_name, save_figure
from ivt2.metrics.retrieval import RetrievalResult
from ivt2.ops.distributed import gather_objects

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOG = logging.getLogger(__name__)

THUMBNAIL_PX = 96
"""Longer side of the frames that are kept of evaluated clips."""
NUM_SHOWN = 5
"""Clips shown of what a query found."""


class Seen(NamedTuple):
    """What is kept of one evaluated clip."""

    frame: UInt8[np.ndarray, "H W C"]
    captions: list[str]


class Figures(Callback):
    """Draws to the MLflow run, or to ``<folder>/figures`` where there is none.

    After each evaluation, for each dataset in ``pl_module.retrieval_results``: the similarity matrix, and the clips
    that a few captions find. In the first training step of each interval, where the module has ``last_masked``
    ([B, N], True = hidden): the first clip with its hidden patches greyed.

    Args:
        folder: Folder of the run.
        every_n_steps: Training steps between two masked clips.
        num_queries: Captions whose finds are shown, evenly spread over the evaluation set.
    """

    def __init__(self, folder: str | Path, *, every_n_steps: int = 1000, num_queries: int = 8) -> None:
        self.folder = Path(folder) / "figures"
        self.every_n_steps = every_n_steps
        self.num_queries = num_queries
        self._seen: dict[str, dict[int, Seen]] = {}
        self._drawn_step = 0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show what a masked clip still shows."""
        masked = getattr(pl_module, "last_masked", None)
        step = trainer.global_step
        if not trainer.is_global_zero or masked is None or step == self._drawn_step or (step - 1) % self.every_n_steps:
            return
        if len(masked) == 0:  # all samples of the batch were skipped
            return
        self._drawn_step = step
        try:
            figure = draw_masked_clip(batch["video"][0].cpu().numpy(), masked[0].cpu().numpy())
        except ValueError as error:  # a picture is no reason to stop training
            _LOG.warning("no picture of the masked clip: %s", error)
            return
        self._save(trainer, f"masked/step{step:08d}", figure)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a frame and the captions of each clip."""
        self._keep(batch)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a frame and the captions of each clip."""
        self._keep(batch)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the evaluation found."""
        self._draw_results(trainer, pl_module)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the evaluation found."""
        self._draw_results(trainer, pl_module)

    def _keep(self, batch: Any) -> None:
        if not isinstance(batch, Mapping) or not {"video", "index", "caption", "clip_of_caption"} <= set(batch):
            return
        frames = thumbnails(batch["video"])
        captions: dict[int, list[str]] = {}
        for clip, caption in zip(batch["clip_of_caption"].tolist(), batch["caption"], strict=True):
            captions.setdefault(clip, []).append(caption)
        seen = self._seen.setdefault(str(batch["source"]), {})
        for frame, index in zip(frames, batch["index"].tolist(), strict=True):
            seen[index] = Seen(frame, captions.get(index, []))

    def _draw_results(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seen, self._seen = self._seen, {}
        if trainer.sanity_checking:
            return
        results: dict[str, RetrievalResult] = getattr(pl_module, "retrieval_results", {})
        stage = "test" if trainer.testing else "val"
        for dataset, result in results.items():
            queries = choose_queries(result, self.num_queries)
            wanted = {clip for _, clips in queries for clip in clips} | {
                _clip(result, caption) for caption, _ in queries
            }
            clips = _from_all_ranks({index: clip for index, clip in seen.get(dataset, {}).items() if index in wanted})
            if not trainer.is_global_zero or not clips:
                continue
            name = f"{safe_name(dataset)}/{stage}_step{trainer.global_step:08d}"
            self._save(trainer, f"{name}_similarity", draw_similarity(result, dataset))
            self._save(trainer, f"{name}_queries", draw_queries(_finds(result, queries, clips)))

    def _save(self, trainer: Trainer, name: str, figure: "Figure") -> None:
        save_figure(trainer, self.folder, name, figure)


def thumbnails(video: Tensor) -> list[UInt8[np.ndarray, "H W C"]]:
    """Middle frame of each clip, at most `THUMBNAIL_PX` long.

    Args:
        video: [B, T, C, H, W], 0 to 255, on any device.
    """
    frames = video[:, video.shape[1] // 2].float()
    scale = THUMBNAIL_PX / max(frames.shape[-2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in frames.shape[-2:]]
        frames = interpolate(frames, size=size, mode="area")
    return list(frames.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def choose_queries(result: RetrievalResult, num_queries: int) -> list[tuple[int, list[int]]]:
    """Captions spread over the set and, for each, the ``index`` of the clips most similar to it, best first."""
    num_captions = result.similarity.shape[1]
    columns = torch.linspace(0, num_captions - 1, min(num_queries, num_captions)).round().long()
    best = result.similarity[:, columns].topk(min(NUM_SHOWN, len(result.similarity)), dim=0).indices
    return [
        (column, result.index[rows].tolist()) for column, rows in zip(columns.tolist(), best.unbind(dim=1), strict=True)
    ]


def _clip(result: RetrievalResult, caption: int) -> int:
    """``index`` of the clip that a caption describes."""
    return int(result.index[result.clip_of_caption[caption]])


def _finds(result: RetrievalResult, queries: list[tuple[int, list[int]]], clips: Mapping[int, Seen]) -> list[Found]:
    finds = []
    for caption, found in queries:
        own = _clip(result, caption)
        position = int((result.clip_of_caption[:caption] == result.clip_of_caption[caption]).sum())
        text = clips[own].captions[position] if own in clips else ""
        frames = [clips[clip].frame if clip in clips else None for clip in found]
        finds.append(Found(text, frames, [clip == own for clip in found]))
    return finds


def _from_all_ranks(clips: dict[int, Seen]) -> dict[int, Seen]:
    """The wanted clips, whichever rank has seen them (every rank must call)."""
    return {index: clip for part in gather_objects(clips) for index, clip in part.items()}

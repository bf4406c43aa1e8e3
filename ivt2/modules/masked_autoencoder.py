"""A teacher of tubelets made here: clips whose hidden tubelets are filled in."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from ivt2.batch import ClipBatch
from ivt2.errors import InputError
from ivt2.losses.feature_alignment import feature_alignment_loss
from ivt2.models.masked_autoencoder import MaskedAutoencoder
from ivt2.modules.optimization import MakeOptimizer, MakeSchedule, optimizer_with_schedule
from ivt2.ops.distributed import global_mean
from ivt2.ops.masking import check_mask_ratio, draw_mask
from ivt2.ops.random import Stream, uniform
from ivt2.ops.sharding import shard
from ivt2.optim.parameter_groups import parameter_groups


class MaskedAutoencoderModule(LightningModule):
    """Trains a :class:`MaskedAutoencoder` on :class:`ClipBatch`: the loss is the mean square over hidden pixels.

    Every mask is a hash of its clip's seed, so it does not depend on ranks, workers or what ran before.

    Args:
        model: The network.
        optimizer: Makes the optimizer from parameter groups.
        schedule: Makes the schedule from the optimizer and ``total_steps``.
        masking: ``tube`` hides the same patches in every frame, ``random`` any in the clip.
        mask_ratio: Share of hidden patches in (0, 1), so that at least one is hidden and one visible.

    Raises:
        InputError: The ratio hides no patch or all.

    Source: Tong et al., "VideoMAE" (arXiv:2203.12602).
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        *,
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        masking: Literal["tube", "random"] = "tube",
        mask_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        check_mask_ratio(mask_ratio)
        encoder = model.encoder
        num_patches = encoder.grid_size**2 * (1 if masking == "tube" else encoder.grid_frames)
        if int(mask_ratio * num_patches) == 0:
            raise InputError(f"mask_ratio={mask_ratio} hides none of {num_patches} patches: nothing is left to predict")
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.masking = masking
        self.mask_ratio = mask_ratio
        self.last_masked: Tensor | None = None

    def configure_model(self) -> None:
        """Shard the blocks where the engine asks for it (``trainer=fsdp2``)."""
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            shard(self.model, mesh, units=self.model.sharding_units(), methods=self.model.ENTRY_POINTS)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Mean square error of the hidden pixels, over the clips of all ranks."""
        video, size = batch["video"], len(batch["video"])
        masked = self.last_masked = self._draw_mask(batch["seed"])
        predicted, targets = self.model(video, masked), self.model.targets(video, masked)
        error = feature_alignment_loss(predicted, targets, distance="mse", normalize=False)
        loss = global_mean(error * size, size)
        self.log("train/loss", loss.detach(), batch_size=size, sync_dist=True, prog_bar=True)
        return loss

    @torch.no_grad()
    def encode(self, video: UInt8[Tensor, "B T C H W"] | Float[Tensor, "B T C H W"]) -> Float[Tensor, "B D"]:
        """Mean of the tokens of whole clips.

        Args:
            video: RGB pixels, uint8 or already normalised.
        """
        return self.model.encode_video(video)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Decay matrices only; step the schedule with the optimizer."""
        groups = parameter_groups(self.model.named_parameters())
        return optimizer_with_schedule(groups, optimizer=self.optimizer, schedule=self.schedule, trainer=self.trainer)

    def _draw_mask(self, seed: Int64[Tensor, "B"]) -> Bool[Tensor, "B N"]:
        encoder = self.model.encoder
        noise = uniform(seed, encoder.num_patches(encoder.num_frames), Stream.AUTOENCODER_PATCHES)
        return draw_mask(self.masking, noise, self.mask_ratio, encoder.grid_frames)

"""InternVideo2's video encoder: patches, transformer blocks, attention pooling.

B clips, T frames, C channels, H W pixels, N patches of a clip, Nv visible ones, D width, K tapped blocks.
A token stands for ``tubelet_size`` frames of one patch; the CLS token is first, is never hidden and not counted in N.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ivt2.errors import InputError
from ivt2.nn.block import Block
from ivt2.nn.init import init_weights
from ivt2.nn.mlp import Gelu
from ivt2.nn.patch_embed import PatchEmbed, check_grid
from ivt2.nn.pooling import AttentionPool
from ivt2.ops.attention import Backend
from ivt2.ops.masking import gather_rows, visible_indices
from ivt2.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from ivt2.ops.position import average_frames, join_separable, sincos_1d, sincos_2d, sincos_3d


class Encoded(NamedTuple):
    """What the encoder says about a batch of clips."""

    tokens: Float[Tensor, "B 1+Nv D"]
    """Residual stream after the last block that ran, not normalised; the CLS token first."""
    pooled: Float[Tensor, "B pooled_dim"]
    """Attention-pooled vector of those tokens."""
    intermediates: Float[Tensor, "K B 1+Nv D"]
    """Residual stream after each tapped block, in increasing depth."""


class InternVideo2(nn.Module):
    """Vision transformer over clips with joint space-time attention; an image is a clip of one frame.

    Args:
        image_size: Side of a frame in pixels, a multiple of ``patch_size``.
        patch_size: Side of a patch in pixels.
        num_frames: Frames of a clip, a multiple of ``tubelet_size``.
        tubelet_size: Frames that one token covers.
        embed_dim: Width D.
        depth: Number of blocks.
        num_heads: Heads of each block.
        mlp_ratio: Hidden width of a block's perceptron over D (48/11 in the 1B model).
        qkv_bias: Whether queries, keys and values have a bias.
        qk_norm: Whether queries and keys are RMS-normalised over the full width.
        layer_scale_init: Start of LayerScale; None leaves it out.
        layer_scale_fp32: Whether LayerScale multiplies in float32.
        drop_path: Stochastic depth of the last block; rises linearly from 0 in the first.
        position: One learned table for all of space and time, or one each for space, time and CLS.
        separate_image_position: Whether images have a table of their own; otherwise they get the clips' table averaged
            over the frames, or of separable tables those for space and CLS alone.
        gelu: ``tanh`` as the released weights, ``erf`` as the reference without fused kernels.
        pool_num_heads: Heads of the pooling.
        pooled_dim: Width of the pooled vector.
        attention: Back end, see ``ivt2.ops.attention.attention``.
        checkpoint_blocks: Number of first blocks whose activations are recomputed in the backward pass.
        init_std: Standard deviation of the linear weights at the start; the reference's 0.02 is too small for a narrow
            model, whose blocks then say almost nothing for hundreds of steps.
        mean: Mean of each channel of the pixels in [0, 1].
        std: Standard deviation of each channel.

    Raises:
        InputError: if sizes do not divide.

    Source: Wang et al., "InternVideo2", ECCV 2024; reference single_modality and multi_modality. Parameter names are
        the reference's, except that the pooling's ``q_bias``, ``k_bias``, ``v_bias`` are ``q.bias`` and so on.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_frames: int,
        tubelet_size: int = 1,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool = False,
        qk_norm: bool = True,
        layer_scale_init: float | None = 1e-5,
        layer_scale_fp32: bool = True,
        drop_path: float = 0.0,
        position: Literal["joint", "separable"] = "joint",
        separate_image_position: bool = False,
        gelu: Gelu = "tanh",
        pool_num_heads: int = 16,
        pooled_dim: int = 768,
        attention: Backend = "auto",
        checkpoint_blocks: int = 0,
        init_std: float = 0.02,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        check_grid(image_size=image_size, patch_size=patch_size, num_frames=num_frames, tubelet_size=tubelet_size)
        if separate_image_position and tubelet_size > 1:
            raise InputError("separate_image_position=true needs tubelet_size=1: an image has one frame")
        self.image_size, self.patch_size = image_size, patch_size
        self.num_frames, self.tubelet_size = num_frames, tubelet_size
        self.grid_size, self.grid_frames = image_size // patch_size, num_frames // tubelet_size
        self.num_patches_per_frame = self.grid_size**2
        self.embed_dim, self.pooled_dim, self.depth = embed_dim, pooled_dim, depth
        self.position, self.separate_image_position = position, separate_image_position
        self.checkpoint_blocks = checkpoint_blocks
        self.init_std = init_std
        self.mean, self.std = tuple(mean), tuple(std)

        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        if position == "joint":
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.num_patches(num_frames), embed_dim))
        else:
            self.pos_embed_spatial = nn.Parameter(torch.empty(1, self.num_patches_per_frame, embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.empty(1, self.grid_frames, embed_dim))
            self.pos_embed_cls = nn.Parameter(torch.empty(1, 1, embed_dim))
        if separate_image_position:
            self.img_pos_embed = nn.Parameter(torch.empty(1, 1 + self.num_patches_per_frame, embed_dim))
        self.patch_embed = PatchEmbed(
            patch_size=patch_size, tubelet_size=tubelet_size, embed_dim=embed_dim, mean=mean, std=std
        )
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_norm=qk_norm,
                layer_scale_init=layer_scale_init,
                layer_scale_fp32=layer_scale_fp32,
                drop_path=drop_path * index / max(depth - 1, 1),
                gelu=gelu,
                attention=attention,
            )
            for index in range(depth)
        )
        self.clip_projector = AttentionPool(embed_dim, pool_num_heads, pooled_dim, attention=attention)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start all weights anew, those of the blocks too; call it after ``to_empty`` where the model came from meta.

        Position tables hold sines and cosines (CLS 0); the patch projection starts as torch starts convolutions; the
        last layers of the two branches of block i (from 1) are divided by sqrt(2 i).
        """
        self.apply(partial(init_weights, std=self.init_std))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for number, block in enumerate(self.blocks, start=1):
            for name in ("attn.proj.weight", "mlp.fc2.weight"):
                block.get_parameter(name).div_((2 * number) ** 0.5)
        if self.position == "joint":
            self.pos_embed.copy_(sincos_3d(self.embed_dim, self.grid_frames, self.grid_size).unsqueeze(0))
        else:
            self.pos_embed_spatial.copy_(sincos_2d(self.embed_dim, self.grid_size).unsqueeze(0))
            self.pos_embed_temporal.copy_(sincos_1d(self.embed_dim, self.grid_frames).unsqueeze(0))
            self.pos_embed_cls.zero_()
        if self.separate_image_position:
            self.img_pos_embed.copy_(sincos_3d(self.embed_dim, 1, self.grid_size).unsqueeze(0))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must not touch, besides biases and norms."""
        return {name for name, _ in self.named_parameters(recurse=False)}

    def num_patches(self, num_frames: int) -> int:
        """Patches N of a clip of so many frames, the length of its mask."""
        return num_frames // self.tubelet_size * self.num_patches_per_frame

    def forward(
        self,
        video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"],
        masked: Bool[Tensor, "B N"] | None = None,
        taps: Sequence[int] = (),
        num_blocks: int | None = None,
        *,
        visible: Int64[Tensor, "B Nv"] | None = None,
    ) -> Encoded:
        """Encode clips of ``num_frames`` frames, or images (T = 1).

        Args:
            video: RGB pixels 0 to 255 as uint8, or floats that are normalised already.
            masked: True where a patch is hidden; hidden patches do not enter the blocks.
            taps: Blocks, counted from 0 and increasing, whose residual stream is returned.
            num_blocks: Run only so many of the first blocks; the pooled vector then pools their output.
            visible: Positions of the patches that are not hidden, ascending; from ``masked`` where None, which has to
                be counted first.

        Raises:
            InputError: if the video is of another size than the model's, or a tapped block does not run.
        """
        num_blocks = self.depth if num_blocks is None else num_blocks
        self._check_taps(taps, num_blocks)
        self._check_size(video)
        if visible is None and masked is not None:
            visible = visible_indices(masked)
        positions = self._positions(video.shape[1])
        patches = self.patch_embed(video, visible) + gather_rows(positions[:, 1:], visible)
        cls = (self.cls_token + positions[:, :1]).expand(len(video), -1, -1)
        tokens = torch.cat([cls, patches], dim=1)
        intermediates = []
        for index, block in zip(range(num_blocks), self.blocks, strict=False):
            tokens = self._run(block, tokens, recompute=index < self.checkpoint_blocks)
            if index in taps:
                intermediates.append(tokens)
        stacked = torch.stack(intermediates) if intermediates else tokens.new_empty(0, *tokens.shape)
        return Encoded(tokens, self.clip_projector(tokens), stacked)

    def _check_size(self, video: Tensor) -> None:
        expected = [3, self.image_size, self.image_size]
        if list(video.shape[2:]) != expected:
            raise InputError(
                f"video frames are {list(video.shape[2:])}, the encoder takes {expected}: resize the video"
            )
        num_frames = video.shape[1]
        if num_frames not in {1, self.num_frames} or num_frames % self.tubelet_size:
            images = " or images" if self.tubelet_size == 1 else ""
            raise InputError(
                f"clips have {num_frames} frames, the encoder takes {self.num_frames}{images}: sample "
                f"{self.num_frames} frames, or build it with num_frames={num_frames} and resize its position table"
            )

    def _check_taps(self, taps: Sequence[int], num_blocks: int) -> None:
        if not 0 < num_blocks <= self.depth:
            raise InputError(f"num_blocks={num_blocks} is not possible: the encoder has {self.depth} blocks")
        check_taps("taps", taps, num_blocks)

    def _positions(self, num_frames: int) -> Tensor:
        """Table of 1 + N rows for clips of so many frames."""
        image = num_frames == 1
        if image and self.separate_image_position:
            return self.img_pos_embed
        if self.position == "joint":
            return average_frames(self.pos_embed, self.grid_frames) if image else self.pos_embed
        if image and self.grid_frames > 1:
            return torch.cat([self.pos_embed_cls, self.pos_embed_spatial], dim=1)
        return join_separable(self.pos_embed_cls, self.pos_embed_spatial, self.pos_embed_temporal)

    @staticmethod
    def _run(block: nn.Module, tokens: Tensor, *, recompute: bool) -> Tensor:
        recompute = recompute and torch.is_grad_enabled()
        out: Tensor = checkpoint(block, tokens, use_reentrant=False) if recompute else block(tokens)
        return out


def taps_from_end(depth: int, num_taps: int, interval: float = 1.0) -> list[int]:
    """Blocks to tap, counted from the last one backwards: ``depth - 1 - int(i * interval)``.

    Args:
        depth: Blocks of the encoder.
        num_taps: Tapped blocks.
        interval: Step from one tapped block to the next, at least 1; 3.34 of 40 blocks gives 39, 36, 33, 29, 26, 23
            (the six tapped first).

    Returns:
        Positions in increasing depth, the order in which the encoder returns their streams.

    Raises:
        InputError: if the interval is below 1 or the encoder has too few blocks.

    Source: reference single_modality, ``clip_return_layer`` with ``clip_student_return_interval`` and its kin.
    """
    if interval < 1 or num_taps < 1:
        raise InputError(f"num_taps={num_taps} with interval={interval} is not possible: both are at least 1")
    taps = [depth - 1 - int(step * interval) for step in range(num_taps)]
    if taps[-1] < 0:
        raise InputError(
            f"{num_taps} taps with interval={interval} do not fit into {depth} blocks: take fewer or a smaller interval"
        )
    return taps[::-1]


def check_taps(name: str, taps: Sequence[int], num_blocks: int) -> None:
    """Refuse tapped blocks that do not increase, or that do not run.

    Args:
        name: What the taps are called.
        taps: Blocks, counted from 0.
        num_blocks: Blocks that run.

    Raises:
        InputError: if they do so.
    """
    if list(taps) != sorted(set(taps)) or any(not 0 <= tap < num_blocks for tap in taps):
        raise InputError(f"{name}={list(taps)} must increase and lie in [0, {num_blocks}), the blocks that run")

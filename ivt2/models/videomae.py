"""VideoMAE's encoder: tubelet patches, pre-norm blocks, fixed positions, no CLS token.

B clips, T frames, H W pixels, N patches of a clip, Nv visible ones, D width, K tapped blocks.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ivt2.errors import InputError
from ivt2.models.internvideo2 import check_taps
from ivt2.nn.attention import SelfAttention
from ivt2.nn.block import Block
from ivt2.nn.init import init_weights
from ivt2.nn.patch_embed import PatchEmbed, check_grid
from ivt2.ops.attention import Backend, attention
from ivt2.ops.masking import gather_rows, visible_indices
from ivt2.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from ivt2.ops.position import resize_position_table, sinusoid_interleaved

TABLE_FRAMES = 8
"""Temporal positions of the table that VideoMAE was trained with: 16 frames in tubelets of 2."""


class QueryValueBiasAttention(SelfAttention):
    """Self-attention whose queries and values have a bias of their own; a bias on the keys would change nothing.

    Args:
        dim: Width.
        num_heads: Heads, which share the width.
        qkv_bias: Whether queries and values have a bias.
        qk_norm: Whether queries and keys are normalised, before their bias.
        backend: See ``ivt2.ops.attention.attention``.

    Raises:
        InputError: if the heads cannot share the width.
    """

    q_bias: nn.Parameter | None
    v_bias: nn.Parameter | None

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool = True, qk_norm: bool = False, backend: Backend = "auto"
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=False, qk_norm=qk_norm, backend=backend)
        self.register_parameter("q_bias", nn.Parameter(torch.zeros(dim)) if qkv_bias else None)
        self.register_parameter("v_bias", nn.Parameter(torch.zeros(dim)) if qkv_bias else None)

    def reset_parameters(self) -> None:
        """Set the biases of queries and values to zero; the linear layers start on their own."""
        for bias in (self.q_bias, self.v_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super()._project(x)
        if self.q_bias is None or self.v_bias is None:
            return q, k, v
        return q + self.q_bias, k, v + self.v_bias


class LiteralAttention(QueryValueBiasAttention):
    """The published VideoMAE teacher's call, taken at its word: the heads of one token attend to each other.

    The published code hands tensors laid out [B, heads, N, head_dim] to a kernel that reads [B, tokens, heads,
    head_dim], and flattens the result in that order. So tokens never meet, and row n of the result holds parts of
    several tokens.

    Source: reference single_modality, videomae.py; recorded in the golden case ``c03_teachers``.
    """

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            raise InputError("attention=literal has no scores between tokens that a bias could change: use fixed")
        by_token = (each.transpose(1, 2) for each in (q, k, v))
        out = attention(*by_token, backend=self.backend).transpose(1, 2)
        return out.reshape(len(q), q.shape[2], -1)


class VideoMAE(nn.Module):
    """VideoMAE v2's encoder, a teacher of stage 1; the released one is ViT-g/14.

    Args:
        image_size: Side of a frame in pixels, a multiple of ``patch_size``.
        patch_size: Side of a patch in pixels; the table of positions is made for 16 x 16 patches where this is 14, and
            for 14 x 14 patches otherwise.
        num_frames: Frames of a clip, a multiple of ``tubelet_size``.
        tubelet_size: Frames that one token covers.
        embed_dim: Width D.
        depth: Number of blocks.
        num_heads: Heads of each block.
        mlp_ratio: Hidden width of a block's perceptron over D (48/11 in ViT-g).
        qv_bias: Whether queries and values have a bias; keys have none.
        layer_scale_init: Start of LayerScale; None leaves it out, as in ViT-g.
        attention: ``fixed`` is ordinary attention over the tokens, which VideoMAE's weights were trained with.
            ``literal`` is what the published code of InternVideo2 computes (see ``LiteralAttention``): its tokens never
            see each other, so its features are poorer, but they are the targets that this code teaches. Which of the
            two the released students learned from is not known.
        backend: See ``ivt2.ops.attention.attention``.
        mean: Mean of each channel of the pixels in [0, 1].
        std: Standard deviation of each channel.

    The position table ``pos_embed`` is fixed: a buffer that is no part of the state dict. It is computed in memory even
    where the model is built on the meta device, so that loading the weights with ``assign=True`` completes the model.
    ``to_empty`` wipes buffers too: call ``reset_buffers`` after it (``reset_parameters`` does so).

    Raises:
        InputError: if sizes do not divide.

    Source: Wang et al., "VideoMAE V2", CVPR 2023; reference single_modality, videomae.py. Parameter names are the
        reference's, except that LayerScale's ``gamma_1``, ``gamma_2`` are ``ls1.gamma``, ``ls2.gamma``.
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_frames: int,
        tubelet_size: int = 2,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        qv_bias: bool = True,
        layer_scale_init: float | None = None,
        attention: Literal["fixed", "literal"] = "fixed",
        backend: Backend = "auto",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        check_grid(image_size=image_size, patch_size=patch_size, num_frames=num_frames, tubelet_size=tubelet_size)
        self.image_size, self.patch_size = image_size, patch_size
        self.num_frames, self.tubelet_size = num_frames, tubelet_size
        self.grid_size, self.grid_frames = image_size // patch_size, num_frames // tubelet_size
        self.embed_dim, self.depth = embed_dim, depth
        self.mean, self.std = tuple(mean), tuple(std)
        self.patch_embed = PatchEmbed(
            patch_size=patch_size, tubelet_size=tubelet_size, embed_dim=embed_dim, mean=mean, std=std
        )
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qv_bias,
                qk_norm=False,
                layer_scale_init=layer_scale_init,
                gelu="erf",
                attention=backend,
                norm=partial(nn.LayerNorm, eps=1e-6),
                attn=QueryValueBiasAttention if attention == "fixed" else LiteralAttention,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.register_buffer("pos_embed", self._table(), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start all weights anew and restore the position table."""
        self.apply(init_weights)
        for module in self.modules():
            if isinstance(module, QueryValueBiasAttention):
                module.reset_parameters()
        self.reset_buffers()

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """Restore the position table; call it after ``to_empty``."""
        self.pos_embed.copy_(self._table())

    def num_patches(self, num_frames: int) -> int:
        """Patches N of a clip of so many frames, the length of its mask."""
        return num_frames // self.tubelet_size * self.grid_size**2

    def forward(
        self,
        video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"],
        masked: Bool[Tensor, "B N"] | None = None,
        *,
        taps: Sequence[int],
    ) -> Float[Tensor, "K B Nv D"]:
        """Residual stream after each tapped block, in increasing depth; that of the last block is normalised.

        Args:
            video: RGB pixels 0 to 255 as uint8, or floats that are normalised already; ``num_frames`` frames.
            masked: True where a patch is hidden; hidden patches do not enter the blocks. A teacher sees everything.
            taps: Blocks, counted from 0 and increasing.

        Raises:
            InputError: if the video is of another size than the model's, or a tapped block does not exist.
        """
        self._check(video, taps)
        visible = None if masked is None else visible_indices(masked)
        tokens = self.patch_embed(video, visible)
        tokens = tokens + gather_rows(self.pos_embed.to(tokens), visible)
        tapped = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in taps:
                tapped.append(tokens if index < self.depth - 1 else self.norm(tokens))
        return torch.stack(tapped)

    def _table(self) -> Tensor:
        trained_grid = 16 if self.patch_size == 14 else 14
        with torch.device("cpu"):
            table = sinusoid_interleaved(self.embed_dim, TABLE_FRAMES * trained_grid**2).unsqueeze(0)
            return resize_position_table(
                table,
                source_frames=TABLE_FRAMES,
                num_frames=self.grid_frames,
                grid_size=self.grid_size,
                num_prefix=0,
            )

    def _check(self, video: Tensor, taps: Sequence[int]) -> None:
        expected = [self.num_frames, 3, self.image_size, self.image_size]
        if list(video.shape[1:]) != expected:
            raise InputError(
                f"clips are {list(video.shape[1:])} (frames, channels, rows, columns), VideoMAE takes {expected}: "
                "sample and resize them so"
            )
        if not taps:
            raise InputError("taps=[] leaves no tokens to return: tap one block at least")
        check_taps("taps", taps, self.depth)

"""Decoders that bring the encoder's features into the space of a frozen teacher."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ivt2.nn.init import init_weights
from ivt2.ops.masking import gather_tokens, visible_indices
from ivt2.ops.position import average_frames, sincos_3d


class Aligned(NamedTuple):
    """Features in the teacher's space, unit vectors unless normalisation is off."""

    middle: Float[Tensor, "K B N teacher_dim"]
    """Tokens, the CLS token first, of each aligned layer in increasing depth."""
    final: Float[Tensor, "B final_dim"]
    """The pooled vector."""


class LinearDecoder(nn.Module):
    """``norm(head(x))``, scaled to unit length.

    Args:
        dim: Width of the input.
        teacher_dim: Width of the result.
        normalize: Whether the result is scaled to unit length.
    """

    def __init__(self, dim: int, teacher_dim: int, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.head = nn.Linear(dim, teacher_dim)
        self.norm = nn.LayerNorm(teacher_dim, eps=1e-5)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch teacher_dim"]:
        """Decode."""
        x = self.norm(self.head(x))
        return functional.normalize(x, dim=-1) if self.normalize else x


class AligningDecoders(nn.Module):
    """One linear decoder for each tapped layer, with position tables of their own, and one for the pooled vector.

    Decoder 0 serves the shallowest tapped layer.

    Args:
        embed_dim: Width of the encoder.
        pooled_dim: Width of the encoder's pooled vector.
        num_layers: Number K of tapped layers.
        teacher_dim: Width of the teacher's tokens.
        final_dim: Width of the teacher's pooled vector; 0 passes the encoder's pooled vector through.
        num_frames: Temporal positions of the encoder (frames divided by the tubelet size).
        grid_size: Patches along one side of a frame.
        separate_image_position: Whether images have a table of their own, or the mean over the frames of the clips'.
        normalize: Whether decoded features are scaled to unit length.

    Source: reference stage 1 and 2, ``clip_decoder``, ``final_clip_decoder``, ``clip_pos_embed``,
        ``clip_img_pos_embed``.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        pooled_dim: int,
        num_layers: int,
        teacher_dim: int,
        final_dim: int,
        num_frames: int,
        grid_size: int,
        separate_image_position: bool = False,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_frames = num_frames
        self.grid_size = grid_size
        self.separate_image_position = separate_image_position
        self.clip_pos_embed = nn.Parameter(torch.empty(1, 1 + num_frames * grid_size**2, embed_dim))
        if separate_image_position:
            self.clip_img_pos_embed = nn.Parameter(torch.empty(1, 1 + grid_size**2, embed_dim))
        self.clip_decoder = nn.ModuleList(
            LinearDecoder(embed_dim, teacher_dim, normalize=normalize) for _ in range(num_layers)
        )
        self.final_clip_decoder = (
            LinearDecoder(pooled_dim, final_dim, normalize=normalize) if final_dim else nn.Identity()
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start all weights anew."""
        self.apply(init_weights)
        self.clip_pos_embed.copy_(sincos_3d(self.embed_dim, self.num_frames, self.grid_size).unsqueeze(0))
        if self.separate_image_position:
            self.clip_img_pos_embed.copy_(sincos_3d(self.embed_dim, 1, self.grid_size).unsqueeze(0))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must not touch, besides biases and norms."""
        return {name for name, _ in self.named_parameters(recurse=False)}

    def forward(
        self,
        intermediates: Float[Tensor, "K B N D"],
        pooled: Float[Tensor, "B pooled"],
        *,
        image: bool = False,
        masked: Bool[Tensor, "B patches"] | None = None,
    ) -> Aligned:
        """Decode what the encoder returned.

        Args:
            intermediates: Tapped streams in increasing depth, the CLS token first.
            pooled: The pooled vector.
            image: Whether the encoder saw single frames.
            masked: The mask that the encoder got, over patches alone.
        """
        tokens = intermediates + self._positions(masked, image=image)
        middle = [decoder(layer) for decoder, layer in zip(self.clip_decoder, tokens, strict=True)]
        return Aligned(torch.stack(middle), self.final_clip_decoder(pooled))

    def _positions(self, masked: Tensor | None, *, image: bool) -> Tensor:
        table: Tensor = self.clip_pos_embed
        if image:
            table = self.clip_img_pos_embed if self.separate_image_position else average_frames(table, self.num_frames)
        if masked is None:
            return table
        patches = gather_tokens(table[:, 1:].expand(len(masked), -1, -1), visible_indices(masked))
        return torch.cat([table[:, :1].expand(len(masked), -1, -1), patches], dim=1)

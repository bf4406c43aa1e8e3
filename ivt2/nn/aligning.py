"""Decoders that bring the encoder's features into the space of a frozen teacher."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ivt2.nn.init import init_weights
from ivt2.nn.mlp import Mlp
from ivt2.ops.fused import unit
from ivt2.ops.masking import gather_rows, visible_indices
from ivt2.ops.position import average_frames, join_separable, sincos_1d, sincos_2d, sincos_3d

DecoderKind = Literal["linear", "mlp"]


class Aligned(NamedTuple):
    """Features in the teacher's space, unit vectors unless normalisation is off."""

    middle: Float[Tensor, "K B N teacher_dim"]
    """Tokens, the CLS token first where it is decoded, of each aligned layer in increasing depth."""
    final: Float[Tensor, "B final_dim"]
    """The pooled vector."""


class FeatureDecoder(nn.Module):
    """``norm(head(x))``, scaled to unit length.

    Args:
        dim: Width of the input.
        teacher_dim: Width of the result.
        kind: ``linear``, or a perceptron with a hidden layer as wide as the input and the exact GELU.
        normalize: Whether the result is scaled to unit length.
    """

    def __init__(self, dim: int, teacher_dim: int, *, kind: DecoderKind = "linear", normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.head = nn.Linear(dim, teacher_dim) if kind == "linear" else Mlp(dim, dim, out_dim=teacher_dim, gelu="erf")
        self.norm = nn.LayerNorm(teacher_dim, eps=1e-5)

    def forward(self, x: Float[Tensor, "*batch D"], *, scale: bool = True) -> Float[Tensor, "*batch teacher_dim"]:
        """Decode.

        Args:
            x: What the encoder says.
            scale: Whether a decoder that normalises may do so; not where only directions matter, for then the length
                is divided out later, at less cost.
        """
        x = self.norm(self.head(x))
        return unit(x) if self.normalize and scale else x


class AligningDecoders(nn.Module):
    """One decoder for each tapped layer, with position tables of their own, and one for the pooled vector.

    Decoder 0 serves the shallowest tapped layer.

    Args:
        embed_dim: Width of the encoder.
        pooled_dim: Width of the encoder's pooled vector.
        num_layers: Number K of tapped layers.
        teacher_dim: Width of the teacher's tokens.
        final_dim: Width of the teacher's pooled vector; 0 passes the encoder's pooled vector through.
        num_frames: Temporal positions of the encoder (frames divided by the tubelet size).
        grid_size: Patches along one side of a frame.
        decoder: Each decoder is one linear layer, or a perceptron of two.
        cls_token: Whether the CLS token is decoded too; a teacher without one has nothing to compare it with.
        position: One table for all of space and time, or one each for space, time and CLS.
        separate_image_position: Whether images have a table of their own, or the mean over the frames of the clips'.
        normalize: Whether decoded features are scaled to unit length.

    Source: reference stage 1 and 2, ``clip_decoder``, ``final_clip_decoder``, ``clip_pos_embed``,
        ``clip_img_pos_embed``; the branch towards VideoMAE (``mae_decoder``, ``mae_pos_embed``) has perceptrons, no CLS
        token and no final decoder.
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
        decoder: DecoderKind = "linear",
        cls_token: bool = True,
        position: Literal["joint", "separable"] = "joint",
        separate_image_position: bool = False,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_frames = num_frames
        self.grid_size = grid_size
        self.num_prefix = int(cls_token)
        self.position = position
        self.separate_image_position = separate_image_position
        num_patches = grid_size**2
        if position == "joint":
            self.pos_embed = nn.Parameter(torch.empty(1, self.num_prefix + num_frames * num_patches, embed_dim))
        else:
            self.pos_embed_spatial = nn.Parameter(torch.empty(1, num_patches, embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.empty(1, num_frames, embed_dim))
            if cls_token:
                self.pos_embed_cls = nn.Parameter(torch.empty(1, 1, embed_dim))
        if separate_image_position:
            self.img_pos_embed = nn.Parameter(torch.empty(1, self.num_prefix + num_patches, embed_dim))
        self.decoders = nn.ModuleList(
            FeatureDecoder(embed_dim, teacher_dim, kind=decoder, normalize=normalize) for _ in range(num_layers)
        )
        self.final = (
            FeatureDecoder(pooled_dim, final_dim, kind=decoder, normalize=normalize) if final_dim else nn.Identity()
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start all weights anew; position tables hold sines and cosines (CLS 0)."""
        self.apply(init_weights)
        skipped = 1 - self.num_prefix
        if self.position == "joint":
            self.pos_embed.copy_(sincos_3d(self.embed_dim, self.num_frames, self.grid_size)[skipped:].unsqueeze(0))
        else:
            self.pos_embed_spatial.copy_(sincos_2d(self.embed_dim, self.grid_size).unsqueeze(0))
            self.pos_embed_temporal.copy_(sincos_1d(self.embed_dim, self.num_frames).unsqueeze(0))
            if self.num_prefix:
                self.pos_embed_cls.zero_()
        if self.separate_image_position:
            self.img_pos_embed.copy_(sincos_3d(self.embed_dim, 1, self.grid_size)[skipped:].unsqueeze(0))

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
        visible: Int64[Tensor, "B Nv"] | None = None,
    ) -> Aligned:
        """Decode what the encoder returned.

        Args:
            intermediates: Tapped streams in increasing depth, the CLS token first.
            pooled: The pooled vector.
            image: Whether the encoder saw single frames.
            masked: The mask that the encoder got, over patches alone.
            visible: Positions of the patches that it leaves; from ``masked`` where None.
        """
        if visible is None and masked is not None:
            visible = visible_indices(masked)
        middle, final = self.decode(intermediates, pooled, image=image, visible=visible, scale=True)
        return Aligned(torch.stack(middle), final)

    def decode(
        self,
        layers: Iterable[Float[Tensor, "B N D"]],
        pooled: Float[Tensor, "B pooled"],
        *,
        image: bool = False,
        visible: Int64[Tensor, "B Nv"] | None = None,
        scale: bool = False,
    ) -> tuple[list[Float[Tensor, "B M teacher_dim"]], Float[Tensor, "B final_dim"]]:
        """The same layer by layer, of any length where ``scale`` is off: all that a loss of directions needs.

        Args:
            layers: Tapped streams in increasing depth, the CLS token first.
            pooled: See ``forward``.
            image: See ``forward``.
            visible: See ``forward``.
            scale: Whether decoders that normalise do so.
        """
        positions = self._positions(visible, image=image)
        tokens = (layer[:, 1 - self.num_prefix :] + positions for layer in layers)
        middle = [decoder(each, scale=scale) for decoder, each in zip(self.decoders, tokens, strict=True)]
        final = self.final(pooled, scale=scale) if isinstance(self.final, FeatureDecoder) else self.final(pooled)
        return middle, final

    def _positions(self, visible: Tensor | None, *, image: bool) -> Tensor:
        table = self._image_table() if image else self._clip_table()
        if visible is None:
            return table
        patches = gather_rows(table[:, self.num_prefix :], visible)
        return torch.cat([table[:, : self.num_prefix].expand(len(visible), -1, -1), patches], dim=1)

    def _image_table(self) -> Tensor:
        if self.separate_image_position:
            return self.img_pos_embed
        return average_frames(self._clip_table(), self.num_frames, num_prefix=self.num_prefix)

    def _clip_table(self) -> Tensor:
        if self.position == "joint":
            return self.pos_embed
        cls = self.pos_embed_cls if self.num_prefix else self.pos_embed_spatial[:, :0]
        return join_separable(cls, self.pos_embed_spatial, self.pos_embed_temporal)

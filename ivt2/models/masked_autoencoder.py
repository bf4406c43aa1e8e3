"""A masked autoencoder of clips: VideoMAE's encoder and the narrow decoder that it is trained with.

B clips, T frames, N tubelets of a clip, Nv visible and Nh hidden ones, D width of the encoder, P numbers of a tubelet.
"""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ivt2.errors import InputError
from ivt2.models.videomae import QueryValueBiasAttention, VideoMAE
from ivt2.nn.block import Block
from ivt2.nn.init import init_weights
from ivt2.ops.masking import gather_tokens, visible_indices
from ivt2.ops.pixels import normalize_pixels
from ivt2.ops.position import sincos_3d
from ivt2.ops.tubelets import cut_tubelets, normalize_tubelets


class MaskedAutoencoder(nn.Module):
    """Learns what clips look like by filling in tubelets that the encoder does not see.

    The encoder works on visible tubelets alone; the decoder gets its tokens, and one learned token in the place of each
    hidden tubelet, all with fixed positions, and predicts the pixels of the hidden ones.

    Args:
        encoder: What is left after training.
        decoder_dim: Width of the decoder, a multiple of 16.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Heads of each, which share the width.
        decoder_mlp_ratio: Hidden width of a block's perceptron over ``decoder_dim``.
        target_eps: Added to the variance that targets are divided by, in squared units of the encoder's pixels; see
            ``ivt2.ops.tubelets.normalize_tubelets``. None leaves the encoder's pixels as they are: where most of a
            frame is flat, and little is learned, the coarse picture is the better target.

    The position table ``decoder_pos_embed`` is fixed and no part of the state dict; it is computed in memory even where
    the model is built on the meta device, as that of the encoder.

    Raises:
        InputError: if the heads cannot share the width, the width does not hold positions, or there is no block.

    Source: Tong et al., "VideoMAE" (arXiv:2203.12602); He et al., "Masked autoencoders are scalable vision learners"
        (arXiv:2111.06377).
    """

    ENTRY_POINTS: ClassVar[tuple[str, ...]] = ("encode_video",)
    """Methods besides ``forward`` that read parameters; a sharded engine gathers these for each."""

    decoder_pos_embed: Tensor

    def __init__(
        self,
        encoder: VideoMAE,
        *,
        decoder_dim: int,
        decoder_depth: int,
        decoder_num_heads: int,
        decoder_mlp_ratio: float = 4.0,
        target_eps: float | None = 1e-6,
    ) -> None:
        super().__init__()
        if decoder_depth < 1:
            raise InputError(f"decoder_depth={decoder_depth}: hidden tokens meet visible ones in blocks; use 1 or more")
        self.encoder = encoder
        self.decoder_dim = decoder_dim
        self.target_eps = target_eps
        self.decoder_embed = nn.Linear(encoder.embed_dim, decoder_dim, bias=False)
        # A vector, which weight decay leaves alone.
        self.mask_token = nn.Parameter(torch.empty(decoder_dim))
        self.decoder_blocks = nn.ModuleList(
            Block(
                decoder_dim,
                decoder_num_heads,
                mlp_ratio=decoder_mlp_ratio,
                qkv_bias=True,
                qk_norm=False,
                layer_scale_init=None,
                gelu="erf",
                norm=partial(nn.LayerNorm, eps=1e-6),
                attn=QueryValueBiasAttention,
            )
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_head = nn.Linear(decoder_dim, encoder.tubelet_size * encoder.patch_size**2 * 3)
        self.register_buffer("decoder_pos_embed", self._table(), persistent=False)
        self._start()

    def reset_parameters(self) -> None:
        """Start all weights anew and restore the position tables; call it after ``to_empty``."""
        self._start()
        self.encoder.reset_buffers()
        self.decoder_pos_embed.copy_(self._table())

    def sharding_units(self) -> Iterator[nn.Module]:
        """Blocks that a sharded engine gathers one at a time."""
        yield from self.encoder.blocks
        yield from self.decoder_blocks

    def forward(
        self, video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"], masked: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B Nh P"]:
        """What the hidden tubelets look like, in the order of ``targets``.

        Args:
            video: RGB pixels, uint8 or already normalised.
            masked: True where a tubelet is hidden; the same number in every clip, at least one.
        """
        visible, hidden = visible_indices(masked), visible_indices(~masked)
        encoded = self.decoder_embed(self._encode(video, masked))
        table = self.decoder_pos_embed.to(encoded).expand(len(video), -1, -1)
        shown = encoded + gather_tokens(table, visible)
        tokens = torch.cat([shown, self.mask_token.to(encoded) + gather_tokens(table, hidden)], dim=1)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        predicted: Tensor = self.decoder_head(self.decoder_norm(tokens[:, visible.shape[1] :]))
        return predicted

    def targets(
        self, video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"], masked: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B Nh P"]:
        """Pixels of the hidden tubelets, each channel of each normalised by itself unless ``target_eps`` is None.

        Args:
            video: See ``forward``.
            masked: See ``forward``.
        """
        encoder = self.encoder
        pixels = normalize_pixels(video, encoder.mean, encoder.std).float()
        boxes = cut_tubelets(pixels, tubelet_size=encoder.tubelet_size, patch_size=encoder.patch_size)
        if self.target_eps is not None:
            boxes = normalize_tubelets(boxes, eps=self.target_eps)
        return gather_tokens(boxes.flatten(2), visible_indices(~masked))

    def encode_video(self, video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"]) -> Float[Tensor, "B D"]:
        """Mean of the encoder's tokens of whole clips.

        Args:
            video: RGB pixels, uint8 or already normalised.
        """
        return self._encode(video, None).mean(dim=1)

    def _encode(self, video: Tensor, masked: Tensor | None) -> Tensor:
        """Tokens after the last block, normalised."""
        tokens: Tensor = self.encoder(video, masked, taps=(self.encoder.depth - 1,))[0]
        return tokens

    @torch.no_grad()
    def _start(self) -> None:
        """The start of both sources, which suits any width; ``VideoMAE`` alone starts as the teacher's code does."""
        self.apply(init_weights)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, QueryValueBiasAttention):
                module.reset_parameters()
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def _table(self) -> Tensor:
        with torch.device("cpu"):
            return sincos_3d(self.decoder_dim, self.encoder.grid_frames, self.encoder.grid_size)[1:].unsqueeze(0)

"""Heads that classify clips from an encoder's features, and the classifier that joins the two.

B clips, T temporal positions, C classes.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ivt2.errors import InputError
from ivt2.models.internvideo2 import Encoded, InternVideo2
from ivt2.nn.init import init_weights
from ivt2.nn.mlp import Mlp

MergeNorm = Literal["layer", "batch", "plain_batch"]


class ClassificationHead(nn.Module):
    """``linear(dropout(norm(pooled)))``; the attentive probe adds a residual perceptron in front.

    Args:
        pooled_dim: Width of the encoder's pooled vector.
        num_classes: Classes C.
        extra_mlp: Whether the pooled vector goes through a residual perceptron first, four times as wide within and
            with the exact GELU; it starts as the identity.
        dropout: Probability of dropping a channel in front of the last layer.
        init_scale: Factor on the last layer's weights at the start.
        init_std: Standard deviation of the linear weights at the start, before that factor.

    Source: reference single_modality, ``internvideo2_*`` (with ``merge_method="proj"``, ``internvideo2_cat_*`` is the
        same) and, with the perceptron, ``internvideo2_ap_*``.
    """

    def __init__(
        self,
        *,
        pooled_dim: int,
        num_classes: int,
        extra_mlp: bool = False,
        dropout: float = 0.0,
        init_scale: float = 0.001,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.pooled_dim, self.extra_mlp = pooled_dim, extra_mlp
        self.init_scale, self.init_std = init_scale, init_std
        if extra_mlp:
            self.mlp_norm = nn.LayerNorm(pooled_dim, eps=1e-5)
            self.mlp = Mlp(pooled_dim, 4 * pooled_dim, gelu="erf")
        self.norm = nn.LayerNorm(pooled_dim, eps=1e-5)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(pooled_dim, num_classes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start all weights anew."""
        self.apply(partial(init_weights, std=self.init_std))
        self.linear.weight.mul_(self.init_scale)
        if self.extra_mlp:
            self.mlp.fc2.weight.zero_()

    def forward(self, encoded: Encoded) -> Float[Tensor, "B C"]:
        """Logits of the classes."""
        features = encoded.pooled
        if self.extra_mlp:
            features = features + self.mlp(self.mlp_norm(features))
        logits: Tensor = self.linear(self.dropout(self.norm(features)))
        return logits


class ConcatHead(nn.Module):
    """Linear layer over the CLS token and the mean patch, of the clip or of each frame, side by side.

    The tokens are those after the last block. The mean of the clip is normalised as it is; means of frames are first
    narrowed to ``pooled_dim`` by a linear layer with the exact GELU.

    Args:
        embed_dim: Width of the encoder.
        pooled_dim: Width of the encoder's pooled vector.
        num_frames: Temporal positions T of the encoder (frames divided by the tubelet size).
        num_classes: Classes C.
        per_frame: Whether each frame gives a mean, or the whole clip one.
        with_pooled: Whether the normalised pooled vector stands beside them.
        merge_norm: ``layer`` normalises each token; ``batch`` each channel over the batch; ``plain_batch`` the same
            without weight and bias.
        dropout: Probability of dropping a channel in front of the last layer.
        init_scale: Factor on the last layer's weights at the start.
        init_std: Standard deviation of the linear weights at the start, before that factor.

    Source: reference single_modality, ``internvideo2_cat_*``: ``cls_avg1`` and ``cls_avgN`` with or without ``_proj``;
        merge norms ``LN``, ``BN``, ``kaiming_BN``. Its input to the last layer runs token by token with ``LN`` and
        channel by channel with the other two, and so it does here. Without the pooled vector the reference keeps the
        norm of it, which has no effect; here it is not built.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        pooled_dim: int,
        num_frames: int,
        num_classes: int,
        per_frame: bool,
        with_pooled: bool,
        merge_norm: MergeNorm,
        dropout: float = 0.0,
        init_scale: float = 0.001,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.embed_dim, self.pooled_dim, self.num_frames = embed_dim, pooled_dim, num_frames
        self.per_frame, self.with_pooled = per_frame, with_pooled
        self.init_scale, self.init_std = init_scale, init_std
        width, num_tokens = (pooled_dim, 1 + num_frames) if per_frame else (embed_dim, 2)
        if per_frame:
            self.down = nn.Linear(embed_dim, pooled_dim)
        self.merge_norm = _merge_norm(merge_norm, width)
        if with_pooled:
            self.norm = nn.LayerNorm(pooled_dim, eps=1e-5)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width * num_tokens + pooled_dim * with_pooled, num_classes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start all weights and the running statistics anew."""
        self.apply(partial(init_weights, std=self.init_std))
        self.merge_norm.reset_parameters()
        self.linear.weight.mul_(self.init_scale)

    def forward(self, encoded: Encoded) -> Float[Tensor, "B C"]:
        """Logits of the classes."""
        cls, patches = encoded.tokens[:, :1], encoded.tokens[:, 1:]
        frames = torch.unflatten(patches, 1, (self.num_frames if self.per_frame else 1, -1))
        features = self._normalise(torch.cat([cls, frames.mean(dim=2)], dim=1))
        if self.with_pooled:
            features = torch.cat([features, self.norm(encoded.pooled)], dim=1)
        logits: Tensor = self.linear(self.dropout(features))
        return logits

    def _normalise(self, tokens: Tensor) -> Tensor:
        """Narrow, normalise and flatten [B, tokens, width]."""
        if self.per_frame:
            tokens = functional.gelu(self.down(tokens))
        if isinstance(self.merge_norm, nn.BatchNorm1d):
            tokens = tokens.transpose(1, 2)
        normalised: Tensor = self.merge_norm(tokens)
        return normalised.flatten(1)


def _merge_norm(kind: MergeNorm, width: int) -> nn.LayerNorm | nn.BatchNorm1d:
    if kind == "layer":
        return nn.LayerNorm(width, eps=1e-5)
    return nn.BatchNorm1d(width, eps=1e-5) if kind == "batch" else nn.BatchNorm1d(width, affine=False, eps=1e-6)


class VideoClassifier(nn.Module):
    """A video encoder with a head: fine-tuning, linear, attentive and concatenating probes.

    Args:
        encoder: The video encoder.
        head: Logits from what the encoder says.

    Raises:
        InputError: if the head was built for an encoder of other sizes.
    """

    def __init__(self, encoder: InternVideo2, head: ClassificationHead | ConcatHead) -> None:
        super().__init__()
        _check_size("pooled_dim", head.pooled_dim, encoder.pooled_dim)
        if isinstance(head, ConcatHead):
            _check_size("embed_dim", head.embed_dim, encoder.embed_dim)
            _check_size("num_frames", head.num_frames, encoder.grid_frames)
        self.encoder = encoder
        self.head = head

    def reset_parameters(self) -> None:
        """Start all weights anew; call it after ``to_empty`` where the model came from meta."""
        self.encoder.reset_parameters()
        self.head.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must not touch, besides biases and norms."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def sharding_units(self) -> Iterator[nn.Module]:
        """Blocks that a sharded engine gathers one at a time."""
        yield from self.encoder.blocks

    def forward(self, video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"]) -> Float[Tensor, "B num_classes"]:
        """Logits of clips.

        Args:
            video: RGB pixels, uint8 or already normalised.

        Raises:
            InputError: if the clips have another number of frames than the encoder was built for.
        """
        # The encoder takes images as well, but the frames that a head counts would then be rows of an image.
        if video.shape[1] != self.encoder.num_frames:
            raise InputError(f"clips have {video.shape[1]} frames, the classifier takes {self.encoder.num_frames}")
        logits: Tensor = self.head(self.encoder(video))
        return logits


def _check_size(name: str, of_head: int, of_encoder: int) -> None:
    if of_head != of_encoder:
        raise InputError(f"the head's {name}={of_head} is not the encoder's {of_encoder}: make them equal")

"""BEATs: a transformer over patches of a sound's log-mel picture, the audio encoder of stage 2.

B sounds, F frames, M mel bins, N tokens (time-major: all mel patches of one moment, then the next), D width.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from ivt2.errors import InputError
from ivt2.nn.attention import check_heads, merge_heads, split_heads
from ivt2.ops.attention import Backend, attention

Activation = Literal["gelu", "gelu_tanh", "relu", "tanh", "linear", "glu"]
NormPlacement = Literal["post", "deep", "pre"]
RelativePosition = Literal["none", "plain", "gated"]
PaddingRule = Literal["patch", "reference"]

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "tanh": torch.tanh,
    "linear": nn.Identity(),
    "glu": nn.Identity(),  # the first linear map is gated by itself
}


class EncodedAudio(NamedTuple):
    """What BEATs says about a batch of sounds."""

    tokens: Float[Tensor, "B N D"]
    valid: Bool[Tensor, "B N"] | None
    """True where a token is real; None if all are."""


def relative_position_buckets(
    length: int, num_buckets: int, max_distance: int, *, device: torch.device | None = None
) -> Int64[Tensor, "N N"]:
    """Bucket of the distance ``key - query`` of each pair of tokens.

    The upper half of the buckets serves keys behind the query, the lower half the others. The first buckets of a half
    stand for one distance each; the rest grows logarithmically up to ``max_distance``; farther keys share the last.

    Args:
        length: Number N of tokens.
        num_buckets: Buckets, at least 4.
        max_distance: Distance in tokens from which on all share one bucket, above ``num_buckets // 4``.
        device: Where the result lies.

    Returns:
        Row: query, column: key.

    Source: T5 (arXiv:1910.10683), bidirectional; BEATs, released code.
    """
    half = num_buckets // 2
    exact = half // 2
    position = torch.arange(length, device=device)
    distance = position[None, :] - position[:, None]
    away = distance.abs()
    # In float32 and in this order, as the released weights saw it: it decides where a quotient is nearly whole.
    growth = torch.log(away.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(away < exact, away, far)


def share_valid(valid: Bool[Tensor, "B M"], length: int) -> Bool[Tensor, "B {length}"]:
    """Cut the entries into ``length`` equal shares; a share is valid if any of its entries is.

    What remains after the last whole share is left out.

    Args:
        valid: True where an entry is real.
        length: Number of shares, at most M.

    Raises:
        InputError: if there are more shares than entries.

    Source: BEATs, released code: from samples to frames and from frames to tokens.
    """
    size = valid.shape[1] // length
    if size == 0:
        raise InputError(f"{valid.shape[1]} entries cannot be cut into {length} shares: use padding=patch")
    return torch.unflatten(valid[:, : size * length], 1, (length, size)).any(dim=-1)


class RelativeAttention(nn.Module):
    """Multi-head self-attention with a bias for the distance between tokens.

    A gated bias is multiplied, for each query and head, by ``a (b c - 1) + 2``, where a and b are sigmoids of sums of
    four linear functions each of the query of that head, and c is learned.

    BEATs divides the scores by 32 and multiplies them again after their maximum is taken off, against overflow in half
    precision; the result is the same, and fused attention keeps scores in float32, so this is left out.

    Args:
        embed_dim: Width D.
        num_heads: Heads; divides D.
        gated: Whether the bias is gated.
        dropout: Share of attention weights dropped in training.
        backend: See ``ivt2.ops.attention.attention``.

    Source: BEATs, released code; the gate is WavLM's (arXiv:2110.13900).
    """

    def __init__(self, embed_dim: int, num_heads: int, *, gated: bool, dropout: float, backend: Backend) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads = num_heads
        self.gated = gated
        self.dropout = dropout
        self.backend: Backend = backend
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        if gated:
            self.grep_linear = nn.Linear(embed_dim // num_heads, 8)
            self.grep_a = nn.Parameter(torch.empty(1, num_heads, 1, 1))

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        position_bias: Float[Tensor, "heads N N"] | None,
        valid: Bool[Tensor, "B N"] | None,
    ) -> Float[Tensor, "B N D"]:
        """Attend from every token to the valid ones (None: all)."""
        q, k, v = (split_heads(project(x), self.num_heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        bias = None if position_bias is None else position_bias.unsqueeze(0)
        if self.gated and bias is not None:
            bias = self.gate(q) * bias
        dropout = self.dropout if self.training else 0.0
        mixed = attention(q, k, v, bias=_hide(bias, valid, q.dtype), dropout=dropout, backend=self.backend)
        out: Tensor = self.out_proj(merge_heads(mixed))
        return out

    def gate(self, q: Float[Tensor, "B heads N head_dim"]) -> Float[Tensor, "B heads N 1"]:
        """Factor of the bias for each query."""
        a, b = self.grep_linear(q).unflatten(-1, (2, 4)).sum(dim=-1).sigmoid().chunk(2, dim=-1)
        factor: Tensor = a * (b * self.grep_a - 1) + 2
        return factor


def _hide(bias: Tensor | None, valid: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Bias that also hides padded keys; a sound that is all padding attends to everything instead of being NaN."""
    if bias is not None:
        bias = bias.to(dtype)
    if valid is None:
        return bias
    if bias is None:
        bias = torch.zeros(1, 1, 1, 1, dtype=dtype, device=valid.device)
    # Half of the least number: the score that is added to it must not overflow.
    return bias.masked_fill(~valid[:, None, None, :], torch.finfo(dtype).min / 2)


class GatedLinear(nn.Module):
    """``u * silu(w)``, where u and w are two linear maps held as one."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * out_dim)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch out_dim"]:
        """Apply."""
        u, w = self.linear(x).chunk(2, dim=-1)
        out: Tensor = u * functional.silu(w)
        return out


class BeatsLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual and a LayerNorm.

    Post-norm is ``norm(alpha x + f(x))``, with alpha above 1 in deep norm; pre-norm is ``x + f(norm(x))``.

    Args:
        attention: The self-attention.
        embed_dim: Width D.
        mlp_dim: Hidden width of the feed-forward.
        activation: Between its two linear maps; ``glu`` gates the first by itself.
        pre_norm: Whether the norms stand before the branches.
        residual_scale: alpha; 1 for pre-norm.
        dropout: Share of channels dropped after each branch in training.
        activation_dropout: Share dropped after the activation.

    Source: BEATs, released code; DeepNorm (arXiv:2203.00555).
    """

    def __init__(
        self,
        attention: RelativeAttention,
        *,
        embed_dim: int,
        mlp_dim: int,
        activation: Activation,
        pre_norm: bool,
        residual_scale: float,
        dropout: float,
        activation_dropout: float,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.pre_norm = pre_norm
        self.residual_scale = residual_scale
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)
        self.self_attn = attention
        self.self_attn_layer_norm = nn.LayerNorm(embed_dim)
        self.fc1 = GatedLinear(embed_dim, mlp_dim) if activation == "glu" else nn.Linear(embed_dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, embed_dim)
        self.final_layer_norm = nn.LayerNorm(embed_dim)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        position_bias: Float[Tensor, "heads N N"] | None,
        valid: Bool[Tensor, "B N"] | None,
    ) -> Float[Tensor, "B N D"]:
        """Mix the tokens of each sound, then transform each by itself."""
        if self.pre_norm:
            x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), position_bias, valid))
            return x + self._feed_forward(self.final_layer_norm(x))
        x = self.residual_scale * x + self.dropout(self.self_attn(x, position_bias, valid))
        x = self.self_attn_layer_norm(x)
        out: Tensor = self.final_layer_norm(self.residual_scale * x + self._feed_forward(x))
        return out

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.activation_dropout(_ACTIVATIONS[self.activation](self.fc1(x)))
        out: Tensor = self.dropout(self.fc2(hidden))
        return out


class Beats(nn.Module):
    """Patches of a log-mel picture, a convolution over time as position code, and transformer layers.

    Args:
        patch_size: Side of a patch in frames and in mel bins.
        patch_dim: Width of the patch embedding; a linear map follows where it is not ``embed_dim``.
        patch_bias: Whether the patch embedding has a bias.
        embed_dim: Width D.
        depth: Number of layers.
        num_heads: Heads of each layer.
        mlp_dim: Hidden width of the feed-forward.
        activation: Of the feed-forward; ``glu`` gates its first linear map by itself.
        norm: ``post`` and ``deep`` (residuals scaled by ``(2 depth) ** 0.25``) normalise after each branch, ``pre``
            before it and once more at the end.
        position_kernel: Tokens that the convolution over time spans.
        position_groups: Groups of the convolution; divides ``embed_dim``.
        relative_position: Bias on attention scores for the distance between tokens; ``gated`` as in
            :class:`RelativeAttention`. The table of distances is one for all layers.
        num_buckets: Classes of distance, see :func:`relative_position_buckets`.
        max_distance: Distance in tokens from which on all are one class.
        num_classes: Classes of the prediction head of fine-tuned models; 0 leaves it out.
        padding: Which tokens count as padding: ``patch``, those of whose own frames none is valid; ``reference``, the
            frames are shared out evenly over the tokens in order, so that high mel patches of a moment are hidden
            although a part of it is real. Only matters where ``valid`` is given, which InternVideo2 never does.
        dropout: Share of channels dropped in training at the input of the layers and after each branch.
        attention_dropout: Share of attention weights dropped.
        activation_dropout: Share dropped after the activation.
        input_dropout: Share dropped before the position code.
        predictor_dropout: Share dropped before the prediction head.
        layer_drop: Probability that training skips a layer, for the whole batch. A skipped layer still runs, with
            gradients of zero, so that sharded ranks may draw differently.
        gradient_decay: Factor on the gradient at the input of each layer, so that deeper layers learn faster.
        attention: Back end, see ``ivt2.ops.attention.attention``.

    Raises:
        InputError: if sizes do not divide, or the distances do not fit the buckets.

    Source: Chen et al., "BEATs", ICML 2023 (arXiv:2212.09058), released code. The defaults are those of the encoder in
        InternVideo2's audio-visual model, except for its ``gradient_decay`` of 0.6 and ``layer_drop`` of 0.05.
    """

    def __init__(
        self,
        *,
        patch_size: int = 16,
        patch_dim: int = 512,
        patch_bias: bool = False,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        activation: Activation = "gelu",
        norm: NormPlacement = "deep",
        position_kernel: int = 128,
        position_groups: int = 16,
        relative_position: RelativePosition = "gated",
        num_buckets: int = 320,
        max_distance: int = 800,
        num_classes: int = 0,
        padding: PaddingRule = "patch",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        input_dropout: float = 0.0,
        predictor_dropout: float = 0.0,
        layer_drop: float = 0.0,
        gradient_decay: float = 1.0,
        attention: Backend = "auto",
    ) -> None:
        super().__init__()
        if position_groups < 1 or embed_dim % position_groups:
            raise InputError(f"embed_dim={embed_dim} is not a multiple of position_groups={position_groups}")
        if relative_position != "none":
            _check_buckets(num_buckets, max_distance)
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        self.norm: NormPlacement = norm
        self.padding: PaddingRule = padding
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.layer_drop, self.gradient_decay = layer_drop, gradient_decay

        self.patch_embedding = nn.Conv2d(1, patch_dim, patch_size, stride=patch_size, bias=patch_bias)
        self.layer_norm = nn.LayerNorm(patch_dim)
        self.post_extract_proj = nn.Linear(patch_dim, embed_dim) if patch_dim != embed_dim else nn.Identity()
        self.input_dropout = nn.Dropout(input_dropout)
        self.pos_conv = weight_norm(
            nn.Conv1d(embed_dim, embed_dim, position_kernel, padding=position_kernel // 2, groups=position_groups),
            dim=2,
        )
        self.encoder_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.relative_attention_bias = nn.Embedding(num_buckets, num_heads) if relative_position != "none" else None
        self.layers = nn.ModuleList(
            BeatsLayer(
                RelativeAttention(
                    embed_dim,
                    num_heads,
                    gated=relative_position == "gated",
                    dropout=attention_dropout,
                    backend=attention,
                ),
                embed_dim=embed_dim,
                mlp_dim=mlp_dim,
                activation=activation,
                pre_norm=norm == "pre",
                residual_scale=(2 * depth) ** 0.25 if norm == "deep" else 1.0,
                dropout=dropout,
                activation_dropout=activation_dropout,
            )
            for _ in range(depth)
        )
        self.predictor_dropout = nn.Dropout(predictor_dropout)
        self.predictor = nn.Linear(embed_dim, num_classes) if num_classes else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start all weights anew; call it after ``to_empty`` where the model came from meta.

        Patch embedding, its projection and the prediction head start as torch starts them. Linear maps of the layers
        and the table of distances start from N(0, 0.02); with deep norm, queries and keys from Xavier's normal
        distribution, and values, outputs and feed-forward from ``(8 depth) ** -0.25`` times it.
        """
        for module in (
            self.patch_embedding,
            self.layer_norm,
            self.post_extract_proj,
            self.encoder_norm,
            self.predictor,
        ):
            if module is not None and not isinstance(module, nn.Identity):
                module.reset_parameters()
        weight = self.pos_conv.parametrizations.weight
        nn.init.normal_(weight.original1, std=(4 / (weight.original1.shape[-1] * self.embed_dim)) ** 0.5)
        weight.original0.copy_(torch.norm_except_dim(weight.original1, 2, 2))
        nn.init.zeros_(self.pos_conv.bias)
        if self.relative_attention_bias is not None:
            nn.init.normal_(self.relative_attention_bias.weight, std=0.02)
        for layer in self.layers:
            _initialize(layer, deep_norm_gain=(8 * self.depth) ** -0.25 if self.norm == "deep" else None)

    def num_tokens(self, num_frames: int, num_mels: int) -> int:
        """Tokens N of a sound of so many frames and mel bins; what fills no whole patch is left out."""
        return (num_frames // self.patch_size) * (num_mels // self.patch_size)

    def forward(self, fbank: Float[Tensor, "B F M"], valid: Bool[Tensor, "B F"] | None = None) -> EncodedAudio:
        """Encode sounds.

        Args:
            fbank: Normalised log-mel energies, see ``ivt2.ops.filterbank.log_mel_features``.
            valid: True where a frame is real; None if all are. InternVideo2 passes none: its rows of zeros at the end
                of a short sound are part of the picture.

        Raises:
            InputError: if there is not one whole patch.
        """
        if self.num_tokens(*fbank.shape[1:]) == 0:
            raise InputError(
                f"a sound of {fbank.shape[1]} frames x {fbank.shape[2]} mel bins holds no patch of {self.patch_size} x "
                f"{self.patch_size}: pad it with zeros"
            )
        patches = self.patch_embedding(fbank.unsqueeze(1))
        if valid is not None:
            valid = self._valid_tokens(valid, *patches.shape[2:])
        x = self.post_extract_proj(self.layer_norm(patches.flatten(2).transpose(1, 2)))
        x = self._add_position(self.input_dropout(x), valid)
        if self.norm != "pre":
            x = self.encoder_norm(x)
        x = self.dropout(x)
        position_bias = self.position_bias(x.shape[1])
        for layer in self.layers:
            x = self._run(layer, x, position_bias, valid)
        return EncodedAudio(self.encoder_norm(x) if self.norm == "pre" else x, valid)

    def predict(self, encoded: EncodedAudio) -> Float[Tensor, "B classes"]:
        """Probability of each class of a fine-tuned model: sigmoid of the mean of the valid tokens' logits.

        Raises:
            RuntimeError: if the network was built with ``num_classes=0``.
        """
        if self.predictor is None:
            raise RuntimeError("predict needs a Beats built with num_classes above 0")
        logits: Tensor = self.predictor(self.predictor_dropout(encoded.tokens))
        if encoded.valid is None:
            return logits.mean(dim=1).sigmoid()
        valid = encoded.valid.unsqueeze(-1)
        return (logits.masked_fill(~valid, 0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)).sigmoid()

    def position_bias(self, length: int) -> Float[Tensor, "heads N N"] | None:
        """Bias for the distances between so many tokens, before the gates of the layers; None without such a bias."""
        if self.relative_attention_bias is None:
            return None
        table = self.relative_attention_bias
        buckets = relative_position_buckets(length, self.num_buckets, self.max_distance, device=table.weight.device)
        bias: Tensor = table(buckets).permute(2, 0, 1)
        return bias

    def _valid_tokens(self, valid: Tensor, num_rows: int, num_columns: int) -> Tensor:
        if self.padding == "reference":
            return share_valid(valid, num_rows * num_columns)
        rows = share_valid(valid[:, : num_rows * self.patch_size], num_rows)
        return rows.repeat_interleave(num_columns, dim=1)

    def _add_position(self, x: Tensor, valid: Tensor | None) -> Tensor:
        if valid is not None:
            x = x.masked_fill(~valid.unsqueeze(-1), 0)
        # An even kernel yields one position too many.
        code = self.pos_conv(x.transpose(1, 2))[..., : x.shape[1]]
        return x + functional.gelu(code).transpose(1, 2)

    def _run(self, layer: nn.Module, x: Tensor, position_bias: Tensor | None, valid: Tensor | None) -> Tensor:
        if self.gradient_decay != 1:
            held = x.detach()
            x = held + self.gradient_decay * (x - held)
        out: Tensor = layer(x, position_bias, valid)
        if self.training and self.layer_drop > 0:
            out = torch.where(torch.rand((), device=x.device) < self.layer_drop, x, out)
        return out


def _initialize(layer: nn.Module, *, deep_norm_gain: float | None) -> None:
    for name, module in layer.named_modules():
        match module:
            case nn.LayerNorm():
                module.reset_parameters()
            case nn.Linear():
                nn.init.zeros_(module.bias)
                if deep_norm_gain is None or name.endswith("grep_linear"):
                    nn.init.normal_(module.weight, std=0.02)
                else:
                    gain = 1.0 if name.endswith(("q_proj", "k_proj")) else deep_norm_gain
                    nn.init.xavier_normal_(module.weight, gain=gain)
            case RelativeAttention() if module.gated:
                nn.init.ones_(module.grep_a)


def _check_buckets(num_buckets: int, max_distance: int) -> None:
    if num_buckets < 4:
        raise InputError(f"num_buckets={num_buckets} is too few: two directions, near and far, make 4")
    if max_distance <= num_buckets // 4:
        raise InputError(
            f"max_distance={max_distance} lies within the {num_buckets // 4} distances that have a bucket each: "
            "raise it or lower num_buckets"
        )

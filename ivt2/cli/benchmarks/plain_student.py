"""The student of stage 1 as plainly as the reference writes it, to measure ours against.

Written from the description of the reference without its CUDA extensions: all patches are embedded by a convolution
and then picked by a boolean mask, position tables are repeated over the batch and picked the same way, softmax
attention is spelt out, LayerScale multiplies in float32 outside of autocast, and each aligned layer is decoded by
itself in a Python loop. It computes what :class:`ivt2.models.stage1.Stage1Student` computes, and parameters have the
same names, so that weights of the one load strictly into the other.

B clips, T frames, N tokens with the CLS token, Nv visible ones, D width, K and Km tapped blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PlainSizes:
    """What the plain student is built from; the names are those of the constructors of ours."""

    image_size: int
    patch_size: int
    num_frames: int
    embed_dim: int
    depth: int
    num_heads: int
    pool_num_heads: int
    pooled_dim: int
    clip_dim: int
    clip_taps: Sequence[int]
    final_dim: int
    mae_dim: int
    mae_taps: Sequence[int]
    drop_path: float = 0.0
    """Rate of the last block."""

    @property
    def num_patches(self) -> int:
        """Patches of a clip."""
        return self.num_frames * (self.image_size // self.patch_size) ** 2


class PlainRMSNorm(nn.Module):
    """Root mean square over the width, step by step in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Normalise, cast back, multiply."""
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class PlainLayerScale(nn.Module):
    """A factor for each channel, in float32 whatever autocast says."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Scale."""
        with torch.autocast(x.device.type, enabled=False):
            return (x.float() * self.gamma.float()).to(x.dtype)


class PlainDropPath(nn.Module):
    """Stochastic depth for each sample."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Drop or scale."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1 - self.rate
        kept = x.new_empty(x.shape[0], 1, 1).bernoulli_(keep)
        return x * kept.div_(keep)


class PlainAttention(nn.Module):
    """Self-attention with the scores written out, queries and keys normalised over the full width."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_norm, self.k_norm = PlainRMSNorm(dim), PlainRMSNorm(dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Attend from every token to every token."""
        batch, num_tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, num_tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        heads = (batch, num_tokens, self.num_heads, -1)
        q = self.q_norm(q.transpose(1, 2).flatten(-2, -1)).view(heads).transpose(1, 2)
        k = self.k_norm(k.transpose(1, 2).flatten(-2, -1)).view(heads).transpose(1, 2)
        weights = self.attn_drop(((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1))
        mixed = (weights @ v).transpose(1, 2).reshape(batch, num_tokens, dim)
        out: Tensor = self.proj_drop(self.proj(mixed))
        return out


class PlainMlp(nn.Module):
    """Two linear layers."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, *, approximate: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(hidden_dim, out_dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch out_dim"]:
        """Apply both."""
        out: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return out


class PlainBlock(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.attn = PlainRMSNorm(dim), PlainAttention(dim, num_heads)
        self.ls1, self.drop_path1 = PlainLayerScale(dim), PlainDropPath(drop_path)
        self.norm2, self.mlp = PlainRMSNorm(dim), PlainMlp(dim, 4 * dim, dim, approximate="tanh")
        self.ls2, self.drop_path2 = PlainLayerScale(dim), PlainDropPath(drop_path)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Run both branches."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return out


class PlainCrossAttention(nn.Module):
    """Attention from queries to tokens with the scores written out."""

    def __init__(self, dim: int, num_heads: int, out_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, out_dim)

    def forward(
        self, query: Float[Tensor, "B Q D"], key: Float[Tensor, "B N D"], value: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B Q out_dim"]:
        """Attend from each query to all tokens."""
        q, k, v = (
            each.reshape(*each.shape[:2], self.num_heads, -1).permute(0, 2, 1, 3)
            for each in (self.q(query), self.k(key), self.v(value))
        )
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(query.shape))
        return out


class PlainPool(nn.Module):
    """Attention from the mean of all tokens, with three norms."""

    def __init__(self, dim: int, num_heads: int, out_dim: int) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(dim, eps=1e-5) for _ in range(3))
        self.cross_attn = PlainCrossAttention(dim, num_heads, out_dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B out_dim"]:
        """Pool."""
        query = self.norm1_q(x.mean(1, keepdim=True))
        pooled: Tensor = self.cross_attn(query, self.norm1_k(x), self.norm1_v(x))
        return pooled.squeeze(1)


class PlainDecoder(nn.Module):
    """A linear layer or a perceptron, LayerNorm, unit length."""

    def __init__(self, dim: int, out_dim: int, *, mlp: bool) -> None:
        super().__init__()
        self.head = PlainMlp(dim, dim, out_dim, approximate="none") if mlp else nn.Linear(dim, out_dim)
        self.norm = nn.LayerNorm(out_dim, eps=1e-5)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch out_dim"]:
        """Decode."""
        x = self.norm(self.head(x))
        out: Tensor = x / x.norm(dim=-1, keepdim=True)
        return out


class PlainPatchEmbed(nn.Module):
    """A convolution over all of the clip."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        kernel = (1, patch_size, patch_size)
        self.proj = nn.Conv3d(3, dim, kernel_size=kernel, stride=kernel)

    def forward(self, video: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B patches D"]:
        """Tokens by frame, row, column."""
        grid: Tensor = self.proj(video)
        return grid.flatten(3).permute(0, 2, 3, 1).flatten(1, 2)


class PlainEncoder(nn.Module):
    """All patches, positions, the visible ones through the blocks, pooling."""

    def __init__(self, sizes: PlainSizes) -> None:
        super().__init__()
        self.patch_embed = PlainPatchEmbed(sizes.patch_size, sizes.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + sizes.num_patches, sizes.embed_dim))
        rates = torch.linspace(0, sizes.drop_path, sizes.depth).tolist()
        self.blocks = nn.ModuleList(PlainBlock(sizes.embed_dim, sizes.num_heads, rate) for rate in rates)
        self.clip_projector = PlainPool(sizes.embed_dim, sizes.pool_num_heads, sizes.pooled_dim)

    def forward(
        self, video: Float[Tensor, "B T 3 H W"], hidden: Bool[Tensor, "B N"], taps: Sequence[int]
    ) -> tuple[list[Float[Tensor, "B Nv D"]], Float[Tensor, "B pooled"]]:
        """Streams of the tapped blocks and the pooled vector."""
        x = self.patch_embed(video.transpose(1, 2).to(self.patch_embed.proj.weight.dtype))
        batch, _, dim = x.shape
        x = torch.cat((self.cls_token.expand(batch, -1, -1), x), dim=1) + self.pos_embed
        x = x[~hidden].reshape(batch, -1, dim)
        streams = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in taps:
                streams.append(x)
        return streams, self.clip_projector(x)


class PlainDecoders(nn.Module):
    """Towards one teacher: a position table and a decoder for each layer."""

    def __init__(
        self, dim: int, num_tokens: int, out_dim: int, num_layers: int, *, mlp: bool, final: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, dim))
        self.decoders = nn.ModuleList(PlainDecoder(dim, out_dim, mlp=mlp) for _ in range(num_layers))
        self.final = PlainDecoder(*final, mlp=mlp) if final is not None else nn.Identity()

    def forward(self, streams: Float[Tensor, "K B Nv D"], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "K B Nv out"]:
        """Add the rows of visible tokens, decode each layer."""
        num_layers, batch, _, dim = streams.shape
        table = self.pos_embed.repeat(batch, 1, 1)[~hidden].view(batch, -1, dim)
        streams = streams + table.unsqueeze(0).repeat(num_layers, 1, 1, 1)
        return torch.stack([decoder(stream) for decoder, stream in zip(self.decoders, streams, strict=True)])


class PlainStudent(nn.Module):
    """Encoder and decoders towards two teachers.

    Source: spec of stage 1, sections 1.1 to 1.4 and 2.5; the GELU of the blocks is the one of the released weights on
    both sides.
    """

    def __init__(self, sizes: PlainSizes) -> None:
        super().__init__()
        self.sizes = sizes
        dim, num_patches = sizes.embed_dim, sizes.num_patches
        self.encoder = PlainEncoder(sizes)
        self.clip_decoders = PlainDecoders(
            dim,
            1 + num_patches,
            sizes.clip_dim,
            len(sizes.clip_taps),
            mlp=False,
            final=(sizes.pooled_dim, sizes.final_dim),
        )
        self.mae_decoders = PlainDecoders(dim, num_patches, sizes.mae_dim, len(sizes.mae_taps), mlp=True, final=None)

    def forward(
        self, video: Float[Tensor, "B T 3 H W"], masked: Bool[Tensor, "B patches"]
    ) -> tuple[Float[Tensor, "K B Nv clip_dim"], Float[Tensor, "B final_dim"], Float[Tensor, "Km B Nv-1 mae_dim"]]:
        """Tokens for the first teacher, pooled vector, tokens for the second."""
        hidden = torch.cat((torch.zeros(len(masked), 1).to(masked.device), masked), dim=1).to(torch.bool)
        taps = sorted({*self.sizes.clip_taps, *self.sizes.mae_taps})
        streams, pooled = self.encoder(video, hidden, taps)
        by_tap = dict(zip(taps, streams, strict=True))
        clip = self.clip_decoders(torch.stack([by_tap[tap] for tap in self.sizes.clip_taps]), hidden)
        mae = torch.stack([by_tap[tap][:, 1:] for tap in self.sizes.mae_taps])
        return clip, self.clip_decoders.final(pooled), self.mae_decoders(mae, hidden[:, 1:])

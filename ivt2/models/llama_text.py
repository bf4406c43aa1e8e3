"""LLaMA as text encoder: the text tower of the large CLIP models.

M texts of L tokens, D width, E width of the shared space. Needs the packages of the extra ``ivt2[chat]``.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ivt2.batch import Vocabulary
from ivt2.errors import InputError
from ivt2.models.text_tower import check_padding, check_size, last_position

if TYPE_CHECKING:
    from transformers import LlamaModel

INIT_STD = 0.02
"""Standard deviation of new matrices. Source: LLaMA as transformers builds it (``initializer_range``)."""

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a LLaMA block, all of which can carry LoRA."""


class LlamaText(nn.Module):
    """LLaMA read off at the last token of a text, with or without low-rank adapters (LoRA).

    ``transformer`` is transformers' ``LlamaModel``; where LoRA is on, peft has wrapped its layers in place and frozen
    all of it but the adapters. Cosines and sines of the positions come from a module without state, so a tower built on
    the meta device is complete once ``load_state_dict(..., assign=True)`` has filled it, and half precision does not
    round the frequencies.

    Args:
        vocab_size: Number of tokens.
        embed_dim: Width D.
        depth: Number of layers.
        num_heads: Heads of each layer.
        num_kv_heads: Heads of keys and values; as many as of queries where None.
        mlp_dim: Hidden width of the gated perceptrons.
        max_positions: Greatest length of a text in tokens.
        rms_norm_eps: Epsilon of the RMS norms.
        rope_base: Base of the rotary positions.
        projection_dim: Width E of the feature.
        lora_rank: Rank of the adapters; None leaves them out.
        lora_alpha: The adapters' product is scaled by ``lora_alpha / lora_rank``.
        lora_dropout: Ratio of the adapters' input dropped in training.
        lora_targets: Layers with adapters, of ``LORA_TARGETS``.
        pad_id: Token that fills texts up, on the right.

    Raises:
        InputError: if transformers or peft is missing, or a target of LoRA does not exist.

    Source: reference multi_modality, ``LLaMA`` text encoder of InternVideo2_CLIP, which is InternVL-C's (Chinese-Alpaca
        7B: 49954 tokens, 32 layers of width 4096, perceptrons of 11008). LoRA: Hu et al. 2022.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        mlp_dim: int,
        max_positions: int = 2048,
        rms_norm_eps: float = 1e-6,
        rope_base: float = 10000.0,
        projection_dim: int,
        lora_rank: int | None = None,
        lora_alpha: float = 32.0,
        lora_dropout: float = 0.1,
        lora_targets: Sequence[str] = ("q_proj", "v_proj"),
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        self.embed_dim, self.projection_dim = embed_dim, projection_dim
        self.vocab_size, self.max_positions, self.pad_id = vocab_size, max_positions, pad_id
        self.has_lora = lora_rank is not None
        # On meta first: transformers and peft would start billions of weights that are started below.
        with torch.device("meta"):
            transformer = _build_transformer({
                "vocab_size": vocab_size,
                "hidden_size": embed_dim,
                "num_hidden_layers": depth,
                "num_attention_heads": num_heads,
                "num_key_value_heads": num_heads if num_kv_heads is None else num_kv_heads,
                "intermediate_size": mlp_dim,
                "max_position_embeddings": max_positions,
                "rms_norm_eps": rms_norm_eps,
            })
            if lora_rank is not None:
                _add_lora(transformer, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout, targets=lora_targets)
        transformer.rotary_emb = RotaryPositions(embed_dim // num_heads, base=rope_base)
        self.transformer = transformer.to_empty(device=torch.get_default_device())
        self.text_projection = nn.Parameter(torch.empty(embed_dim, projection_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start all weights anew; call it after ``to_empty`` where the model came from meta.

        Adapters start without effect.
        """
        for name, parameter in self.transformer.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
            elif ".lora_B." in name:
                nn.init.zeros_(parameter)
            elif ".lora_A." in name:
                nn.init.kaiming_uniform_(parameter, a=5**0.5)
            else:
                nn.init.normal_(parameter, std=INIT_STD)
        nn.init.normal_(self.text_projection, std=self.embed_dim**-0.5)

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer's layers."""
        return cast(nn.ModuleList, self.transformer.layers)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must not touch: all. Source: reference, CLIP post-training."""
        return {name for name, _ in self.named_parameters()}

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Refuse a tokenizer with too many tokens, or one that pads with another token than ``pad_id``.

        Raises:
            InputError: if it does so.
        """
        check_size(vocabulary, self.vocab_size)
        check_padding(vocabulary, self.pad_id)

    def encode_tokens(self, input_ids: Int64[Tensor, "M L"]) -> Float[Tensor, "M L D"]:
        """States of all tokens after the last norm; those of padding mean nothing.

        Args:
            input_ids: Tokens, padded on the right: attention is causal, so padding needs no mask.

        Raises:
            InputError: if a text is too long.
        """
        length = input_ids.shape[1]
        if length > self.max_positions:
            raise InputError(
                f"text of {length} tokens exceeds max_positions={self.max_positions}: lower the tokenizer's max_length"
            )
        # transformers cannot shape an empty batch, and sharded layers must be gathered on ranks without texts too.
        rows = input_ids if len(input_ids) else input_ids.new_full((1, length), self.pad_id)
        states: Tensor = self.transformer(input_ids=rows, use_cache=False).last_hidden_state
        return states[: len(input_ids)]

    def forward(self, input_ids: Int64[Tensor, "M L"]) -> Float[Tensor, "M E"]:
        """Feature of each text, not normalised: the state of its last token before the padding, projected."""
        tokens = self.encode_tokens(input_ids)
        last = last_position(input_ids, self.pad_id)
        feature: Tensor = tokens[torch.arange(len(tokens), device=last.device), last] @ self.text_projection
        return feature

    @torch.no_grad()
    def merge_lora(self) -> None:
        """Replace each layer with adapters by a plain one: ``W + lora_alpha / lora_rank * B A``, computed in float32.

        The feature stays the same in eval mode; names of parameters become those of a tower without LoRA, which this
        leaves as it is.
        """
        if not self.has_lora:
            return
        from peft.tuners.lora import LoraLayer

        for name, layer in list(self.transformer.named_modules()):
            if isinstance(layer, LoraLayer):
                plain = cast(nn.Linear, layer.get_base_layer())
                (adapter,) = layer.active_adapters
                up, down = (cast(nn.Linear, part[adapter]).weight for part in (layer.lora_B, layer.lora_A))
                wide = torch.promote_types(plain.weight.dtype, torch.float32)
                product = up.to(wide) @ down.to(wide)
                plain.weight.copy_(plain.weight.to(wide) + layer.scaling[adapter] * product)
                self.transformer.set_submodule(name, plain)
        self.has_lora = False


class RotaryPositions(nn.Module):
    """Cosines and sines of ``p * base ** (-2 i / head_dim)``, twice side by side, computed in float32 at each call.

    Takes the place of transformers' module of this purpose, whose frequencies are a buffer outside the state dict: it
    would stay on meta, or be rounded with the weights to half precision.

    Args:
        head_dim: Width of a head, even.
        base: Base of the frequencies.

    Source: Su et al., "RoFormer", arXiv:2104.09864, in the layout of transformers' LLaMA.
    """

    def __init__(self, head_dim: int, *, base: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.base = base

    @torch.no_grad()
    def forward(
        self, x: Float[Tensor, "B L D"], position_ids: Int64[Tensor, "#B L"]
    ) -> tuple[Float[Tensor, "#B L head_dim"], Float[Tensor, "#B L head_dim"]]:
        """Cosines and sines in the dtype of ``x``."""
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device)
        frequencies = 1.0 / self.base ** (steps / self.head_dim)
        angles = (position_ids[..., None].float() * frequencies).repeat(1, 1, 2)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _build_transformer(sizes: Mapping[str, Any]) -> "LlamaModel":
    try:
        from transformers import LlamaConfig, LlamaModel
    except ImportError as error:
        raise InputError(f"the LLaMA text tower needs transformers: pip install 'ivt2[chat]' ({error})") from error
    return LlamaModel(LlamaConfig(**sizes, pad_token_id=None, use_cache=False, attn_implementation="sdpa"))


def _add_lora(transformer: "LlamaModel", *, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> None:
    if not targets or not set(targets) <= set(LORA_TARGETS):
        raise InputError(f"lora_targets={list(targets)} must be some of {', '.join(LORA_TARGETS)}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(f"LoRA needs peft: pip install 'ivt2[chat]', or lora_rank=null ({error})") from error
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets)), transformer
    )

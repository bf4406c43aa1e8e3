"""Networks in other arithmetic: another judge, another attention kernel, half precision.

Half precision: the weights themselves are bfloat16 or float16. Bounds are about twice what was measured on a CPU with
these networks of eight blocks, whose weights are spread so that every block, bias and norm matters. Errors are norms of
differences of vectors over norms of vectors, the largest of all tokens or features.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ivt2.models.beats import Beats
from ivt2.models.bert import Bert
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.llama_text import LlamaText
from ivt2.models.mobileclip import MobileClipText
from ivt2.models.videomae import VideoMAE
from tests.golden.bert import rename_bert

LENGTHS = torch.tensor([32, 20, 7, 3])
VALID = torch.arange(32) < LENGTHS[:, None]
BOUNDS = {torch.bfloat16: (2.5e-2, 1.5e-4), torch.float16: (3.5e-3, 3e-6)}
"""Greatest error and lack of the cosine to one; measured 1.2e-2 and 7.3e-5, 1.7e-3 and 1.5e-6."""
WIDE_BOUNDS = {torch.bfloat16: (3.8e-2, 3.5e-4), torch.float16: (5.5e-3, 8e-6)}
"""The same of BEATs (gated bias) and LLaMA (gated perceptrons); measured 1.9e-2 and 1.8e-4, 2.8e-3 and 3.9e-6."""


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


VIDEO = (draw(1, 4, 4, 3, 56, 56) * 60 + 128).clamp(0, 255).to(torch.uint8)
INPUT_IDS = (draw(2, 4, 32).abs() * 60 + 5).long().clamp(max=298).masked_fill(~VALID, 0)
CLIP_IDS = INPUT_IDS.scatter(1, LENGTHS[:, None] - 1, 299)
"""With the end token, of the greatest id, where MobileCLIP reads the text off."""
VISION_TOKENS = draw(3, 4, 40, 176)
FBANK = draw(4, 4, 160, 64)
VALID_FRAMES = torch.arange(160) < torch.tensor([160, 100, 40, 16])[:, None]


def run_vision(network: InternVideo2) -> dict[str, Tensor]:
    encoded = network(VIDEO.to(place(network)))
    return {"tokens": encoded.tokens, "pooled": encoded.pooled}


def run_bert(network: Bert, *, padded: bool = True) -> dict[str, Tensor]:
    device, dtype = place(network), network.embedding.word.weight.dtype
    valid = VALID.to(device) if padded else None
    text = network.encode_text(INPUT_IDS.to(device), valid)
    fused = network.fuse(text, valid, network.project(VISION_TOKENS.to(device, dtype)))
    keep = VALID if padded else torch.ones_like(VALID)
    return {"tokens": text[keep], "pooled": text[:, 0], "fused": fused[keep]}


def run_beats(network: Beats) -> dict[str, Tensor]:
    fbank = FBANK.to(place(network), network.encoder_norm.weight.dtype)
    tokens, part = network(fbank).tokens, network(fbank, VALID_FRAMES.to(fbank.device))
    return {"tokens": tokens, "pooled": tokens.mean(dim=1), "padded": part.tokens[part.valid]}


def run_mobileclip(network: MobileClipText) -> dict[str, Tensor]:
    input_ids = CLIP_IDS.to(place(network))
    return {"tokens": network.encode_tokens(input_ids)[VALID], "pooled": network(input_ids)}


def run_llama(network: LlamaText) -> dict[str, Tensor]:
    input_ids = INPUT_IDS.to(place(network))
    return {"tokens": network.encode_tokens(input_ids)[VALID], "pooled": network(input_ids)}


def run_videomae(network: VideoMAE) -> dict[str, Tensor]:
    return {"tokens": network(VIDEO.to(place(network)), taps=[7])[0]}


def place(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


VISION = {
    "image_size": 56, "patch_size": 14, "num_frames": 4, "embed_dim": 176, "depth": 8, "num_heads": 2,
    "mlp_ratio": 48 / 11, "pool_num_heads": 2, "pooled_dim": 96,
}  # fmt: skip
NARROW = {"embed_dim": 48, "mlp_ratio": 4.0}
BERT = {
    "vocab_size": 300, "embed_dim": 128, "depth": 8, "num_heads": 2, "mlp_dim": 512, "max_positions": 64,
    "fusion_layer": 6, "encoder_width": 176, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
BEATS = {
    "patch_dim": 64, "embed_dim": 128, "depth": 8, "num_heads": 2, "mlp_dim": 512, "position_kernel": 16,
    "position_groups": 4, "num_buckets": 32, "max_distance": 80,
}  # fmt: skip
MOBILECLIP = {
    "vocab_size": 300, "context_length": 32, "embed_dim": 128, "depth": 8, "num_heads": 2, "projection_dim": 64,
}  # fmt: skip
LLAMA = {
    "vocab_size": 300, "embed_dim": 128, "depth": 8, "num_heads": 2, "mlp_dim": 344, "projection_dim": 64,
    "lora_rank": 4, "lora_alpha": 8.0,
}  # fmt: skip
VIDEOMAE = {
    "image_size": 56, "patch_size": 14, "num_frames": 4, "embed_dim": 176, "depth": 8, "num_heads": 2,
    "mlp_ratio": 48 / 11,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A network, and what it says about fixed inputs."""

    build: Callable[..., nn.Module]
    run: Callable[..., dict[str, Tensor]]
    backend: str | None = "attention"
    """Argument that chooses the attention kernel; None where another library chooses."""
    biased: bool = False
    """Whether its attention has a bias on the scores, which flash-attn does not take."""
    bounds: dict[torch.dtype, tuple[float, float]] = field(default_factory=lambda: BOUNDS)


KINDS = {
    "vision": Kind(partial(InternVideo2, **VISION), run_vision),
    "vision_narrow": Kind(partial(InternVideo2, **VISION | NARROW), run_vision),
    "videomae": Kind(partial(VideoMAE, **VIDEOMAE), run_videomae, "backend"),
    "videomae_literal": Kind(partial(VideoMAE, **VIDEOMAE, attention="literal"), run_videomae, "backend"),
    "bert": Kind(partial(Bert, **BERT), run_bert, biased=True),
    "bert_unpadded": Kind(partial(Bert, **BERT), partial(run_bert, padded=False)),
    "beats": Kind(partial(Beats, **BEATS), run_beats, biased=True, bounds=WIDE_BOUNDS),
    "beats_plain": Kind(partial(Beats, **BEATS, relative_position="none", norm="pre"), run_beats, biased=True),
    "mobileclip": Kind(partial(MobileClipText, **MOBILECLIP), run_mobileclip, biased=True),
    "mobileclip_whole": Kind(partial(MobileClipText, **MOBILECLIP, causal=False), run_mobileclip),
    "llama": Kind(partial(LlamaText, **LLAMA), run_llama, None, biased=True, bounds=WIDE_BOUNDS),
}


def spread(network: nn.Module) -> nn.Module:
    """Weights with which every part matters; LayerScale at its usual start would silence the blocks."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma"):
                parameter.fill_(0.3)
            elif parameter.ndim > 1 and "pos_embed" not in name:
                parameter.copy_(noise * (2 / (parameter.shape[0] + parameter.shape[-1])) ** 0.5)
            else:
                parameter.add_(noise * 0.1)
    return network.eval()


def make(kind: Kind, **options: str) -> nn.Module:
    torch.manual_seed(0)
    return spread(kind.build(**options))


def distance(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest error of a vector, and largest lack of its cosine to one."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    error = ((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()
    return error, 1 - cosine_similarity(actual, expected, dim=-1).min().item()


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.backend])
def test_fused_attention_equals_plain_attention(name):
    """Heads 88, 24 and 64 wide, with and without bias: values, and gradients of all weights."""
    kind, results = KINDS[name], []
    for backend in ("sdpa", "eager"):
        network = make(kind, **{kind.backend: backend})
        said = kind.run(network)
        torch.stack([value.double().square().mean() for value in said.values()]).sum().backward()
        results.append((said, {key: each.grad for key, each in network.named_parameters() if each.grad is not None}))
    (said, gradients), (plain, plain_gradients) = results
    for key, value in said.items():
        assert distance(value, plain[key])[0] < 3e-6, key
    assert gradients.keys() == plain_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[key], atol=1e-6, rtol=1e-4, msg=key)


@torch.no_grad()
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_half_precision_stays_within_bounds(name, dtype):
    check_half_precision(KINDS[name], make(KINDS[name]), dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_half_precision_stays_within_bounds_on_gpu(name, dtype):
    check_half_precision(KINDS[name], make(KINDS[name]), dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.backend and not kind.biased])
def test_flash_attn_stays_within_bounds(name, dtype):
    pytest.importorskip("flash_attn")
    kind = KINDS[name]
    check_half_precision(kind, make(kind, **{kind.backend: "flash_attn"}), dtype, "cuda", judge=make(kind))


def check_half_precision(
    kind: Kind, network: nn.Module, dtype: torch.dtype, device: str, judge: nn.Module | None = None
) -> None:
    expected = kind.run(network if judge is None else judge)
    actual = kind.run(deepcopy(network).to(device, dtype))
    largest_error, largest_lack = kind.bounds[dtype]
    for key, value in actual.items():
        assert value.dtype == dtype
        error, lack = distance(value, expected[key])
        assert 0 < error < largest_error, f"{key}: {error}"
        assert lack < largest_lack, f"{key}: {lack}"


@torch.no_grad()
@pytest.mark.parametrize("fusion_layer", [1, 2, 4])
def test_layers_below_the_fusion_agree_with_transformers(fusion_layer):
    """On texts from 3 to 60 tokens: the state after so many of the judge's layers."""
    sizes = transformers.BertConfig(
        vocab_size=300,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    judge = spread(transformers.BertModel(sizes, add_pooling_layer=False))
    bert = Bert(**BERT | {"depth": 4, "fusion_layer": fusion_layer}, masked_lm=False).eval()
    state = {rename_bert(name): parameter for name, parameter in judge.named_parameters()}
    assert all("cross_attention" in name for name in bert.state_dict().keys() - state.keys())
    bert.load_state_dict(bert.state_dict() | state)
    lengths = torch.tensor([60, 41, 17, 3])
    valid = torch.arange(60) < lengths[:, None]
    input_ids = torch.randint(1, 300, (4, 60), generator=torch.Generator().manual_seed(5)).masked_fill(~valid, 0)
    expected = judge(input_ids, attention_mask=valid.long(), output_hidden_states=True).hidden_states[fusion_layer]
    actual = bert.encode_text(input_ids, valid)
    torch.testing.assert_close(actual[valid], expected[valid], atol=1e-5, rtol=1e-5)

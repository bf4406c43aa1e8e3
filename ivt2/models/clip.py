"""CLIP: a video encoder and a text tower that share a space, the result of CLIP post-training.

Letters are those of :mod:`ivt2.batch`; M texts, E is the width of the shared space.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.llama_text import LlamaText
from ivt2.models.mobileclip import MobileClipText


class ClipModel(nn.Module):
    """InternVideo2-CLIP: large with LLaMA, whose space is the encoder's pooled vector; small with MobileCLIP's text.

    Args:
        vision_encoder: The video encoder; its pooled vector is the feature of a clip. An image is a clip of one frame.
        text_encoder: The text tower.
        vision_align: Width E that a LayerNorm and a linear layer bring the pooled vector to (512 in the small models);
            None leaves the pooled vector as it is.
        temperature: Initial divisor of the cosine similarities, which is learned.
        min_temperature: The learned temperature is kept at this or above.
        logit_bias: Initial bias of the sigmoid loss, which is learned; None for the softmax loss, which has none.

    Raises:
        InputError: if the two features differ in width.

    Source: InternVideo2 (arXiv:2403.15377) section 3; reference classes InternVideo2_CLIP and InternVideo2_CLIP_small.
    """

    ENTRY_POINTS = ("encode_video", "encode_text", "read_temperature", "read_logit_bias")
    """Methods that read parameters: what a sharded engine has to know, since there is no single ``forward``."""

    def __init__(
        self,
        vision_encoder: InternVideo2,
        text_encoder: MobileClipText | LlamaText,
        *,
        vision_align: int | None = None,
        temperature: float = 0.01,
        min_temperature: float = 0.01,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        pooled_dim, text_dim = vision_encoder.pooled_dim, text_encoder.projection_dim
        video_dim = pooled_dim if vision_align is None else vision_align
        if video_dim != text_dim:
            raise InputError(
                f"features of clips are {video_dim} wide, those of texts {text_dim}: set vision_align={text_dim}"
            )
        self.vision_encoder = vision_encoder
        self.text_encoder = text_encoder
        self.vision_align = (
            nn.Identity()
            if vision_align is None
            else nn.Sequential(nn.LayerNorm(pooled_dim), nn.Linear(pooled_dim, vision_align))
        )
        self.min_temperature = min_temperature
        # One element rather than none: a sharded parameter needs a dimension to be cut along.
        self.temperature = nn.Parameter(torch.full((1,), temperature))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.full((1,), logit_bias))

    def encode_video(
        self, video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"], masked: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B E"]:
        """Unit-length feature of clips, or of images (T = 1).

        Args:
            video: Pixels, uint8 or already normalised.
            masked: True where a patch is hidden; the same number in every clip. None hides nothing.
        """
        return normalize(self.vision_align(self.vision_encoder(video, masked).pooled), dim=-1)

    def encode_text(self, input_ids: Int64[Tensor, "M L"]) -> Float[Tensor, "M E"]:
        """Unit-length feature of texts.

        Args:
            input_ids: Tokens of the tower's own tokenizer, padded on the right.
        """
        return normalize(self.text_encoder(input_ids), dim=-1)

    def read_temperature(self) -> Float[Tensor, "1"]:
        """Temperature for use in a loss: a copy, since a sharded engine frees the parameter between entry points."""
        return self.temperature.clone()

    def read_logit_bias(self) -> Float[Tensor, "1"] | None:
        """Bias for use in a loss: a copy, likewise; None where the model has none."""
        return None if self.logit_bias is None else self.logit_bias.clone()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the learned temperature within its range; to be called before each step."""
        self.temperature.clamp_(min=self.min_temperature)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone, beside biases and vectors."""
        towers = {"vision_encoder": self.vision_encoder, "text_encoder": self.text_encoder}
        names = {f"{tower}.{name}" for tower, module in towers.items() for name in module.no_weight_decay()}
        return {"temperature"} | names

    def sharding_units(self) -> Iterator[nn.Module]:
        """Blocks that a sharded engine gathers one at a time."""
        yield from self.vision_encoder.blocks
        yield from self.text_encoder.layers

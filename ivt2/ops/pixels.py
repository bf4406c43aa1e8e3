"""From bytes to the floats that networks take."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_pixels(
    video: Float[Tensor, "B T C *rest"] | UInt8[Tensor, "B T C *rest"],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Float[Tensor, "B T C *rest"]:
    """``(x / 255 - mean) / std`` of uint8 pixels, in float32; floats pass, for they are normalised already.

    Args:
        video: RGB pixels 0 to 255 as uint8, or floats; frames, or boxes cut out of them.
        mean: Mean of each channel of the pixels in [0, 1].
        std: Standard deviation of each channel.
    """
    if video.dtype != torch.uint8:
        return video
    # Numbers, not buffers of a network: these would be rounded in a bf16 model and lost on the way from meta.
    channels = zip(video.unbind(dim=2), mean, std, strict=True)
    return torch.stack([(channel.float() / 255 - mean_) / std_ for channel, mean_, std_ in channels], dim=2)

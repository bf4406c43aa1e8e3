"""The feature by which each kind of network stands for a clip, a sound or a caption.

The one that is compared over modalities where the network has such a one, otherwise its pooled vector. Not scaled to
unit length in general. A new network registers its own.
"""

from functools import singledispatch

from torch import Tensor, nn

from ivt2.models.beats import Beats
from ivt2.models.bert import Bert
from ivt2.models.clip import ClipModel
from ivt2.models.heads import VideoClassifier
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.llama_text import LlamaText
from ivt2.models.mobileclip import MobileClipText
from ivt2.models.stage1 import Stage1Student
from ivt2.models.stage2 import Stage2Model
from ivt2.models.stage2_audio import Stage2AudioVisualModel
from ivt2.models.videomae import VideoMAE


@singledispatch
def video_features(model: nn.Module, video: Tensor) -> Tensor:
    """Features [B, E] of clips [B, T, C, H, W]."""
    raise TypeError(f"{type(model).__name__} gives no feature of clips {list(video.shape)}")


@video_features.register
def _(model: InternVideo2, video: Tensor) -> Tensor:
    return model(video).pooled  # type: ignore[no-any-return]


@video_features.register
def _(model: Stage1Student, video: Tensor) -> Tensor:
    return model.encoder(video).pooled  # type: ignore[no-any-return]


@video_features.register
def _(model: VideoClassifier, video: Tensor) -> Tensor:
    return model.encoder(video).pooled  # type: ignore[no-any-return]


@video_features.register
def _(model: Stage2Model, video: Tensor) -> Tensor:
    return model.embed_video(model.encode_video(video))


@video_features.register
def _(model: ClipModel, video: Tensor) -> Tensor:
    return model.encode_video(video)


@video_features.register
def _(model: VideoMAE, video: Tensor) -> Tensor:
    return model(video, taps=[model.depth - 1])[0].mean(dim=1)  # type: ignore[no-any-return]


@singledispatch
def audio_features(model: nn.Module, fbank: Tensor) -> Tensor:
    """Features [B, E] of sounds [B, F, M]."""
    raise TypeError(f"{type(model).__name__} gives no feature of sounds {list(fbank.shape)}")


@audio_features.register
def _(model: Stage2AudioVisualModel, fbank: Tensor) -> Tensor:
    return model.embed_audio(model.encode_audio(fbank))


@audio_features.register
def _(model: Beats, fbank: Tensor) -> Tensor:
    return model(fbank).tokens.mean(dim=1)  # type: ignore[no-any-return]


@singledispatch
def text_features(model: nn.Module, ids_and_valid: Tensor) -> Tensor:
    """Features [M, E] of captions: [M, 2, L] holds the ids of each, and 1 where they are valid."""
    raise TypeError(f"{type(model).__name__} gives no feature of captions {list(ids_and_valid.shape)}")


@text_features.register
def _(model: Stage2Model, ids_and_valid: Tensor) -> Tensor:
    input_ids, valid = ids_and_valid.unbind(dim=1)
    return model.embed_text(model.encode_text(input_ids, valid.bool()))


@text_features.register
def _(model: ClipModel, ids_and_valid: Tensor) -> Tensor:
    return model.encode_text(ids_and_valid[:, 0])


@text_features.register
def _(model: Bert, ids_and_valid: Tensor) -> Tensor:
    input_ids, valid = ids_and_valid.unbind(dim=1)
    return model.encode_text(input_ids, valid.bool())[:, 0]


@text_features.register
def _(model: LlamaText, ids_and_valid: Tensor) -> Tensor:
    return model(ids_and_valid[:, 0])  # type: ignore[no-any-return]


@text_features.register
def _(model: MobileClipText, ids_and_valid: Tensor) -> Tensor:
    return model(ids_and_valid[:, 0])  # type: ignore[no-any-return]

"""How a stage-2 network takes part in retrieval: which views of the clips it has, and the heads that match them."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ivt2.batch import RetrievalBatch
from ivt2.metrics.retrieval_evaluation import Match, RetrievalFeatures
from ivt2.models.stage2 import EncodedText, Stage2Model
from ivt2.models.stage2_audio import Stage2AudioVisualModel


def encode_retrieval(model: Stage2Model, batch: RetrievalBatch) -> RetrievalFeatures:
    """Encode clips, whole, and all their captions; pictures and sound once each.

    Args:
        model: the network; without an audio encoder it does not read ``batch["audio"]``.
        batch: clips of one medium. The views are ``v`` where there are pictures, ``a`` where there is sound, and ``av``
            where there are both and the model has ``audio_visual_fusion``.
    """
    video = model.encode_video(batch["video"]) if "video" in batch else None
    text = model.encode_text(batch["input_ids"], batch["valid"])
    clips: dict[str, Tensor] = {}
    tokens: dict[str, Tensor] = {}
    if video is not None:
        clips["v"], tokens["v"] = model.embed_video(video), video.tokens
    if isinstance(model, Stage2AudioVisualModel) and "audio" in batch:
        audio = model.encode_audio(batch["audio"])
        clips["a"], tokens["a"] = model.embed_audio(audio), audio.tokens
        if video is not None and model.audio_visual_fusion is not None:
            clips["av"] = model.embed_audio_visual(audio, video)
    return RetrievalFeatures(clips, tokens, model.embed_text(text), text.tokens, text.valid)


def matching_heads(model: Stage2Model) -> Mapping[str, Match]:
    """Matching heads that the network has, by the view that they judge."""
    heads = {"v": _of_tokens(model.match)}
    if isinstance(model, Stage2AudioVisualModel):
        if model.audio_matching_head is not None:
            heads["a"] = _of_tokens(model.match_audio)
        if model.audio_visual_matching_head is not None:
            heads["av"] = _of_tokens(model.match_audio_visual)
    return heads


def _of_tokens(match: Callable[..., Tensor]) -> Match:
    """The head as a function of plain tensors."""
    return lambda text_tokens, valid, *tokens: match(EncodedText(text_tokens, valid), *tokens)

"""How a stage-2 network takes part in retrieval: which views of the clips it has, and the heads that match them."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ivt2.batch import RetrievalBatch
from ivt2.metrics.retrieval_evaluation import Match, RetrievalFeatures
from ivt2.models.stage2 import EncodedText, Stage2Model
from ivt2.models.stage2_audio import Stage2AudioVisualModel
from ivt2.modules.stage2_terms import WeightedTerm


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


def matching_heads(model: Stage2Model, terms: Sequence[WeightedTerm]) -> Mapping[str, Match]:
    """Matching heads by the view that they judge: those that the terms train, since others would rank by chance.

    Args:
        model: the network, which has what the terms need.
        terms: of its loss.
    """
    judged = {each.term.view for each in terms if each.term.kind == "matching"}
    heads: dict[str, Match] = {}
    if "video" in judged:
        heads["v"] = _of_tokens(model.match)
    if isinstance(model, Stage2AudioVisualModel):
        heads |= {"a": _of_tokens(model.match_audio)} if "audio" in judged else {}
        heads |= {"av": _of_tokens(model.match_audio_visual)} if "audio_video" in judged else {}
    return heads


def _of_tokens(match: Callable[..., Tensor]) -> Match:
    """The head as a function of plain tensors."""
    return lambda text_tokens, valid, rows, *tokens: match(EncodedText(text_tokens, valid), *tokens, rows)

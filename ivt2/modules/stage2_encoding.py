"""Encode a batch of stage 2: clips once, sound once, and captions, clean and corrupted, in one go.

Letters: B clips, Nv visible visual tokens with the CLS token, S audio tokens, L text tokens, E the shared space, F the
width of what captions look at.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ivt2.batch import MediaTextBatch, TextTokens, Vocabulary
from ivt2.errors import InputError
from ivt2.losses.masked_lm import MaskDraws, mask_tokens
from ivt2.models.internvideo2 import Encoded
from ivt2.models.stage2 import EncodedText, Stage2Model
from ivt2.models.stage2_audio import AudioFeatures, Stage2AudioVisualModel
from ivt2.models.teacher import TeacherFeatures
from ivt2.modules.stage2_terms import Modality, StepTerms, View
from ivt2.ops.chunks import by_chunks, check_chunk, num_chunks


class Corruption(NamedTuple):
    """Captions of which some words are hidden."""

    input_ids: Int64[Tensor, "B L"]
    labels: Int64[Tensor, "B L"]
    """The hidden words, -100 elsewhere."""


class EncodedBatch(NamedTuple):
    """A batch after the encoders; by view and by kind of caption (None is the main one) that the step's terms read."""

    batch: MediaTextBatch
    video: Encoded | None
    tokens: Mapping[Modality, Float[Tensor, "B S F"]]
    """What captions look at."""
    features: Mapping[View, Float[Tensor, "B E"]]
    """Unit length."""
    captions: Mapping[str | None, EncodedText]
    textual: Mapping[str | None, Float[Tensor, "B E"]]
    """Unit length."""
    corrupted: Mapping[str | None, EncodedText]
    labels: Mapping[str | None, Int64[Tensor, "B L"]]
    """Hidden words of the corrupted captions, -100 elsewhere."""
    temperature: Float[Tensor, "1"]
    bias: Float[Tensor, "1"] | None
    """Of a sigmoid contrast."""
    said: TeacherFeatures | None = None
    """What a teacher says of the whole clips, not normalised; None where no term compares with it."""


class StepEncoder:
    """Runs each encoder once a step, for all terms together.

    Args:
        model: the network.
        taps: blocks of the vision encoder whose tokens a term of alignment compares with a teacher's.
        chunk: rows that an encoder takes at a time, see ``ivt2.ops.chunks``; None takes all at once.

    Raises:
        InputError: a chunk without rows.
    """

    def __init__(self, model: Stage2Model, *, taps: Sequence[int] = (), chunk: int | None = None) -> None:
        check_chunk(chunk)
        self._model = model
        self._taps = tuple(taps)
        self._chunk = chunk

    def __call__(
        self,
        batch: MediaTextBatch,
        terms: StepTerms,
        masked: Bool[Tensor, "B N"] | None,
        corruptions: Mapping[str | None, Corruption],
    ) -> EncodedBatch:
        """Encode what the terms read.

        Args:
            batch: clips of one medium.
            terms: what is computed of them.
            masked: True where a visual token is hidden.
            corruptions: corrupted captions, of each kind that a masked-LM term reads.
        """
        model = self._model
        chunks = num_chunks(len(batch["seed"]), self._chunk, device=batch["seed"].device)
        video = self._encode_video(batch["video"], masked, chunks) if "video" in terms.modalities else None
        audio = self._encode_audio(batch["audio"], chunks) if "audio" in terms.modalities else None
        captions, corrupted = self._encode_texts(batch, terms, corruptions, chunks)
        return EncodedBatch(
            batch,
            video,
            tokens=_tokens(video, audio),
            features={view: _feature(model, view, video, audio) for view in terms.compared},
            captions=captions,
            textual={kind: model.embed_text(text) for kind, text in captions.items()},
            corrupted=corrupted,
            labels={kind: each.labels for kind, each in corruptions.items()},
            temperature=model.read_temperature(),
            bias=model.read_logit_bias(),
        )

    def check_chunks(self) -> None:
        """Refuse chunks where a part of the network looks at the whole batch; to be called in the modes of training.

        Raises:
            InputError: naming the part.
        """
        if self._chunk is None:
            return
        for name, part in self._model.named_modules():
            if isinstance(part, _BatchNorm) and part.training:
                raise InputError(
                    f"encode_chunk={self._chunk}: {name} normalises by the statistics of a batch, which a chunk does "
                    f"not have; freeze it (frozen=[{name}]), or set encode_chunk=null"
                )

    def _encode_video(self, video: Tensor, masked: Tensor | None, chunks: int) -> Encoded:
        def encode(video: Tensor, masked: Tensor | None) -> tuple[Tensor, ...]:
            encoded = self._model.encode_video(video, masked, self._taps)
            return encoded.tokens, encoded.pooled, encoded.intermediates.transpose(0, 1)

        tokens, pooled, intermediates = by_chunks(encode, (video, masked), chunks)
        return Encoded(tokens, pooled, intermediates.transpose(0, 1))

    def _encode_audio(self, fbank: Tensor, chunks: int) -> AudioFeatures:
        assert isinstance(self._model, Stage2AudioVisualModel), "the terms were checked against the model"
        return AudioFeatures(*by_chunks(self._model.encode_audio, (fbank,), chunks))

    def _encode_texts(
        self,
        batch: MediaTextBatch,
        terms: StepTerms,
        corruptions: Mapping[str | None, Corruption],
        chunks: int,
    ) -> tuple[dict[str | None, EncodedText], dict[str | None, EncodedText]]:
        """Clean and corrupted captions of all kinds through the text layers together."""
        clean = [captions_of(batch, kind) for kind in terms.captions]
        hidden = [TextTokens(each.input_ids, captions_of(batch, kind).valid) for kind, each in corruptions.items()]
        if not (texts := clean + hidden):
            return {}, {}
        input_ids, valid = (torch.cat(each) for each in zip(*texts, strict=True))

        def encode(input_ids: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
            return tuple(self._model.encode_text(input_ids, valid))

        encoded = by_chunks(encode, (input_ids, valid), chunks * len(texts) if chunks > 1 else 1)
        sizes = [len(each.valid) for each in texts]
        split = [EncodedText(*each) for each in zip(*(torch.split(part, sizes) for part in encoded), strict=True)]
        by_kind = dict(zip(terms.captions, split[: len(clean)], strict=True))
        return by_kind, dict(zip(corruptions, split[len(clean) :], strict=True))


def captions_of(batch: MediaTextBatch, kind: str | None) -> TextTokens:
    """Captions of a kind; None is the main one.

    Args:
        batch: clips with captions.
        kind: one that the batch has.
    """
    return TextTokens(batch["input_ids"], batch["valid"]) if kind is None else batch["texts"][kind]


def corrupt(
    batch: MediaTextBatch,
    kinds: Sequence[str | None],
    vocabulary: Vocabulary,
    noise: Float[Tensor, "B num"],
    *,
    probability: float,
) -> dict[str | None, Corruption]:
    """Hide words of captions: the same places in captions of all kinds, which are equally long with their padding.

    Args:
        batch: clips with captions.
        kinds: which captions.
        vocabulary: of the tokenizer.
        noise: four draws for each token.
        probability: of a word being selected, see `mask_tokens`.
    """
    draws = MaskDraws.from_uniform(noise)
    return {
        kind: Corruption(
            *mask_tokens(
                captions_of(batch, kind).input_ids,
                draws,
                vocab_size=vocabulary.size,
                mask_id=vocabulary.mask_id,
                pad_id=vocabulary.pad_id,
                cls_id=vocabulary.cls_id,
                probability=probability,
            )
        )
        for kind in kinds
    }


def _tokens(video: Encoded | None, audio: AudioFeatures | None) -> dict[Modality, Tensor]:
    found: dict[Modality, Encoded | AudioFeatures | None] = {"video": video, "audio": audio}
    return {modality: each.tokens for modality, each in found.items() if each is not None}


def _feature(model: Stage2Model, view: View, video: Encoded | None, audio: AudioFeatures | None) -> Tensor:
    """What is compared, of unit length."""
    if view == "video":
        assert video is not None, "the terms ask for it"
        return model.embed_video(video)
    assert isinstance(model, Stage2AudioVisualModel), "the terms were checked against the model"
    assert audio is not None, "the terms ask for it"
    if view == "audio":
        return model.embed_audio(audio)
    assert video is not None, "the terms ask for both"
    return model.embed_audio_visual(audio, video)

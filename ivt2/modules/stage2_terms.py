"""The terms of stage 2's loss: what each compares with what, which parts of a network it needs, and when it runs.

    contrast    atc avc vtc avtc    features of two sides, of all ranks
    matching    atm vtm avtm        captions that look at sound, at pictures, or at both: right pair or wrong
    masked_lm   amlm mlm avmlm      hidden words of captions that look at the same
    alignment   uta                 visible tokens against a teacher of whole clips

Source: InternVideo2 (arXiv:2403.15377) section 3.2; names of the reference's ``loss_weight``.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from typing_extensions import Self

from ivt2.batch import MediaTextBatch, Medium
from ivt2.errors import InputError
from ivt2.models.stage2 import Stage2Model

Kind = Literal["contrast", "matching", "masked_lm", "alignment"]
Modality = Literal["video", "audio"]
View = Literal["video", "audio", "audio_video"]
"""What is shown: pictures, sound, or the sound followed by the pictures."""

MODALITIES: Mapping[str, frozenset[Modality]] = {
    "image": frozenset({"video"}),
    "video": frozenset({"video"}),
    "audio": frozenset({"audio"}),
    "audio_video": frozenset({"audio", "video"}),
}
"""What clips of a medium have, and what a view is made of."""


class Term(NamedTuple):
    """What a term of the loss is about."""

    kind: Kind
    view: View
    """What captions are compared with, or look at."""
    partner: Literal["text", "video", "teacher"] = "text"
    """What the view is compared with."""

    @property
    def modalities(self) -> frozenset[Modality]:
        """What a clip must have."""
        return MODALITIES[self.view] | MODALITIES.get(self.partner, frozenset())


TERMS: Mapping[str, Term] = {
    "vtc": Term("contrast", "video"),
    "vtm": Term("matching", "video"),
    "mlm": Term("masked_lm", "video"),
    "atc": Term("contrast", "audio"),
    "atm": Term("matching", "audio"),
    "amlm": Term("masked_lm", "audio"),
    "avc": Term("contrast", "audio", partner="video"),
    "avtc": Term("contrast", "audio_video"),
    "avtm": Term("matching", "audio_video"),
    "avmlm": Term("masked_lm", "audio_video"),
    "uta": Term("alignment", "video", partner="teacher"),
}


class WeightedTerm(NamedTuple):
    """A term as a run asks for it."""

    name: str
    term: Term
    weight: float
    caption: str | None
    """Kind of caption; None is the main one."""

    def runs_on(self, medium: Medium) -> bool:
        """Whether clips of this medium have what the term needs."""
        return self.term.modalities <= MODALITIES[medium]


@dataclass(frozen=True)
class StepTerms:
    """The terms that are computed of one batch.

    Args:
        terms: those that the batch's medium serves; their captions are those that the batch has.
    """

    terms: tuple[WeightedTerm, ...]

    @classmethod
    def of(cls, terms: tuple[WeightedTerm, ...], batch: MediaTextBatch) -> Self:
        """Choose the terms of a batch; one without kinds of captions has its main ones alone."""
        running = (each for each in terms if each.runs_on(batch["medium"]))
        return cls(tuple(running) if "texts" in batch else tuple(each._replace(caption=None) for each in running))

    def of_kind(self, *kinds: Kind) -> list[WeightedTerm]:
        """Terms of these kinds."""
        return [each for each in self.terms if each.term.kind in kinds]

    def only(self, kind: Kind, view: View) -> WeightedTerm | None:
        """The term of this kind and view, of which there is one at most."""
        return next((each for each in self.of_kind(kind) if each.term.view == view), None)

    @property
    def modalities(self) -> set[Modality]:
        """What has to be encoded."""
        return {modality for each in self.terms for modality in each.term.modalities}

    @property
    def compared(self) -> list[View]:
        """Views whose features are compared: by contrast, or to find wrong pairs."""
        sides = [side for each in self.of_kind("contrast", "matching") for side in (each.term.view, each.term.partner)]
        return [view for view in get_args(View) if view in sides]

    @property
    def shown(self) -> list[View]:
        """Views that captions look at."""
        views = {each.term.view for each in self.of_kind("matching", "masked_lm")}
        return [view for view in get_args(View) if view in views]

    @property
    def captions(self) -> list[str | None]:
        """Kinds of captions that are read as they are."""
        texts = [each for each in self.of_kind("contrast", "matching") if each.term.partner == "text"]
        return list(dict.fromkeys(each.caption for each in texts))

    @property
    def corrupted(self) -> list[str | None]:
        """Kinds of captions of which words are hidden."""
        return list(dict.fromkeys(each.caption for each in self.of_kind("masked_lm")))


def parse_terms(terms: Mapping[str, Any]) -> tuple[WeightedTerm, ...]:
    """Read terms as a configuration gives them; those of weight 0 are left out.

    Args:
        terms: weight, or ``weight`` and ``caption``, by the name of the term.

    Raises:
        InputError: a term or an option that does not exist, a weight that is none, or no term at all.
    """
    parsed = tuple(_parse(name, given) for name, given in terms.items())
    if not any(each.weight for each in parsed):
        raise InputError(f"terms={dict(terms)}: name at least one of {', '.join(TERMS)}, with a weight above 0")
    return tuple(each for each in parsed if each.weight)


def check_parts(
    terms: tuple[WeightedTerm, ...], model: Stage2Model, *, teacher: bool, where: str = "module.model"
) -> None:
    """Refuse a model that lacks a part that a term needs.

    Args:
        terms: what will be computed.
        model: the network.
        teacher: whether there is a teacher of whole clips.
        where: what the model is called in the configuration.

    Raises:
        InputError: naming the part and what to set.
    """
    for name, term, _, _ in terms:
        for part, remedy in _needed(name, term).items():
            if getattr(model, part, None) is None:
                raise InputError(f"terms.{name} needs {part}, which the model lacks: {remedy.format(where=where)}")
        if term.kind == "masked_lm" and model.text_encoder.masked_lm_head is None:
            raise InputError(
                f"terms.{name} needs the masked-LM head of the text encoder: set text_encoder.masked_lm=true"
            )
        if term.kind == "alignment" and not teacher:
            raise InputError(f"terms.{name} needs a teacher: add +teacher@module.teacher=..., or leave the term out")


def check_sources(
    terms: tuple[WeightedTerm, ...], media: Mapping[str, Medium], caption_kinds: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuse training sources that serve no term, terms that no source serves, and captions that none delivers.

    Args:
        terms: what will be computed.
        media: of the training sources, by their place in the configuration.
        caption_kinds: which kinds of captions each of them delivers beside the main one.

    Raises:
        InputError: naming the source or the term.
    """
    for source, medium in media.items():
        if not any(each.runs_on(medium) for each in terms):
            raise InputError(
                f"datamodule.{source}: none of the terms ({', '.join(each.name for each in terms)}) can be computed of "
                f"{medium}; name one that can, or leave the source out"
            )
    for each in terms:
        served = [source for source, medium in media.items() if each.runs_on(medium)]
        if not served:
            needed = " and ".join(sorted(each.term.modalities))
            raise InputError(
                f"terms.{each.name} needs sources with {needed}, of which there is none to train on "
                f"({', '.join(f'{source}: {medium}' for source, medium in media.items())}); add one, or leave it out"
            )
        if each.caption is not None:
            _check_caption(each, {source: caption_kinds.get(source, ()) for source in served})


def _check_caption(each: WeightedTerm, kinds: Mapping[str, tuple[str, ...]]) -> None:
    """A source without any kinds has its main caption only, which then serves."""
    wrong = [source for source, has in kinds.items() if has and each.caption not in has]
    if not any(each.caption in has for has in kinds.values()):
        wrong = list(kinds)
    if wrong:
        raise InputError(
            f"terms.{each.name}.caption={each.caption}: {wrong[0]} is not asked for such captions; add "
            f"{each.caption} to datamodule.{wrong[0]}.caption_kinds, or name another kind"
        )


def _parse(name: str, given: Any) -> WeightedTerm:
    if name not in TERMS:
        near = difflib.get_close_matches(name, TERMS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(TERMS)}"
        raise InputError(f"terms.{name}: no such term; {hint}")
    options = given if isinstance(given, Mapping) else {"weight": given}
    if unknown := set(options) - {"weight", "caption"}:
        raise InputError(f"terms.{name}.{min(unknown)}: no such option; a term has weight and caption")
    weight, caption = options.get("weight", 1.0), options.get("caption")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise InputError(f"terms.{name}: weight={weight!r}: give a number from 0 on")
    if caption is not None and (not isinstance(caption, str) or not caption):
        raise InputError(f"terms.{name}: caption={caption!r}: give a kind of captions, such as fused, or leave it out")
    if caption is not None and TERMS[name].partner != "text":
        raise InputError(f"terms.{name}.caption={caption}: the term reads no captions; leave it out")
    return WeightedTerm(name, TERMS[name], float(weight), caption)


def _needed(name: str, term: Term) -> dict[str, str]:
    """Parts of the model and what gives it them."""
    audio = {"audio_encoder": "use module=stage2_audio"} if "audio" in term.modalities else {}
    # Wrong pairs are drawn by the fused feature.
    fused = term.view == "audio_video" and term.kind in {"contrast", "matching"}
    return {
        **audio,
        **({"audio_visual_fusion": "set {where}.audio_visual_fusion=true"} if fused else {}),
        **({"audio_matching_head": "set {where}.audio_matching=true"} if name == "atm" else {}),
        **({"audio_visual_matching_head": "set {where}.audio_visual_matching=true"} if name == "avtm" else {}),
        **({"clip_decoders": "give {where}.clip_decoders"} if term.kind == "alignment" else {}),
    }

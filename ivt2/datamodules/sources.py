"""A source of clips: a shard folder, and how its samples are used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

from typing_extensions import Self

from ivt2.batch import Medium
from ivt2.data.sound import SoundReader
from ivt2.errors import InputError

_SOUNDS = ("audio", "audio_video")


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """A shard folder.

    Args:
        shards: folder or address.
        medium: what is read of a sample; None finds it from the first samples: video, else image, else audio.

    Raises:
        InputError: for options that are not there or do not fit together.
    """

    shards: str
    medium: Medium | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shards, str) or not self.shards:
            raise InputError(f"shards={self.shards!r}: name a folder or an address")
        self._check("medium", get_args(Medium), optional=True)

    @classmethod
    def of(cls, name: str, given: "str | Mapping[str, object] | ShardSource") -> Self:
        """Read a source as a configuration gives it.

        Args:
            name: place in the configuration, for messages.
            given: a folder, or options by name.

        Raises:
            InputError: for options that are not there or do not fit together.
        """
        if isinstance(given, cls):
            return given
        options = {"shards": given} if isinstance(given, str) else given
        if not isinstance(options, Mapping):
            raise InputError(f"datamodule.{name}={given}: give a shard folder, or options with one as `shards`")
        known = [field.name for field in fields(cls)]
        if unknown := [option for option in options if option not in known]:
            raise InputError(f"datamodule.{name}.{unknown[0]}: is no option of a source; it takes {', '.join(known)}")
        if "shards" not in options:
            raise InputError(f"datamodule.{name}: names no shards; add {name}.shards=<folder>")
        try:
            return cls(**options)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(f"datamodule.{name}: {error}") from error

    def _check(self, name: str, choices: Sequence[str], *, optional: bool) -> None:
        value = getattr(self, name)
        if value not in choices and (value is not None or not optional):
            raise InputError(f"{name}={value}: choose one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class MediaSource(ShardSource):
    """A shard folder of clips with captions, and how its samples are used.

    Args:
        shards: folder or address.
        medium: what is read of a sample: ``image``, ``video``, ``audio`` or ``audio_video``; None finds it from the
            first samples: video, else image, else audio.
        captions: for training ``random`` or ``first``, for evaluation ``all`` or ``first``; None takes the
            datamodule's.
        caption_kinds: kinds of captions that a training batch holds beside the chosen one, as ``texts``.
        caption_kind: kind of captions that an evaluation ranks; None ranks the annotated ones.
        min_words: captions of fewer normalised words are not used; the reference's pretraining uses 2. 0 uses all.
        read_audio_from: the ``audio`` member or the track of the ``video``; None takes the member for ``audio``, and
            for ``audio_video`` the member of a sample that has one, as preparation leaves it, else the track.
        missing_audio: ``skip`` leaves a clip without sound out, ``pad`` gives it rows of zeros.

    Raises:
        InputError: for options that are not there or do not fit together.
    """

    captions: Literal["random", "first", "all"] | None = None
    caption_kinds: Sequence[str] = ()
    caption_kind: str | None = None
    min_words: int = 0
    read_audio_from: Literal["audio", "video"] | None = None
    missing_audio: Literal["skip", "pad"] = "skip"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("captions", ("random", "first", "all"), optional=True)
        self._check("read_audio_from", ("audio", "video"), optional=True)
        self._check("missing_audio", ("skip", "pad"), optional=False)
        if not isinstance(self.min_words, int) or isinstance(self.min_words, bool) or self.min_words < 0:
            raise InputError(f"min_words={self.min_words}: give a number of words, 0 to use all captions")
        if not _are_names(self.caption_kinds):
            raise InputError(
                f"caption_kinds={self.caption_kinds}: give a list of different kinds, such as [video, audio, fused]"
            )
        if self.caption_kind is not None and (not isinstance(self.caption_kind, str) or not self.caption_kind):
            raise InputError(f"caption_kind={self.caption_kind}: name one kind, such as fused")
        if self.medium not in _SOUNDS and (self.read_audio_from is not None or self.missing_audio != "skip"):
            raise InputError(
                "read_audio_from and missing_audio are for sources with sound: add medium=audio or medium=audio_video"
            )
        if self.medium == "audio" and self.missing_audio == "pad":
            raise InputError("missing_audio=pad: a sample of sound alone would be empty; leave it at skip")

    @property
    def asked_kinds(self) -> tuple[str, ...]:
        """Kinds of captions that each sample must have."""
        return (*self.caption_kinds, *([] if self.caption_kind is None else [self.caption_kind]))

    def sound_reader(self, *, crop: Literal["random", "middle"]) -> SoundReader:
        """Return what reads the sound of this source.

        Args:
            crop: which ten seconds of a longer sound.
        """
        default: Literal["audio", "either"] = "either" if self.medium == "audio_video" else "audio"
        return SoundReader(read_from=self.read_audio_from or default, missing=self.missing_audio, crop=crop)


@dataclass(frozen=True, kw_only=True)
class ClipSource(ShardSource):
    """A shard folder of clips without text, and how its samples are used.

    Args:
        shards: folder or address.
        medium: ``video`` or ``image``; None finds it from the first samples.
        trim: choose frames only within the annotated segment of the clip; None does what the datamodule does.
        flip: False leaves ``HorizontalFlip`` out of the transforms: left and right matter.
        flip_except: the same for the clips whose fact ``source`` is one of these, in a set that merges several.
        classes: names of the classes in order: a clip's class is the place of its ``label`` among them. Without them
            it is the number ``class_index``.

    Raises:
        InputError: for options that are not there or do not fit together.
    """

    trim: bool | None = None
    flip: bool = True
    flip_except: Sequence[str] = ()
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.medium in _SOUNDS:
            raise InputError(f"medium={self.medium}: is for datamodule=media_text; clips without text have no sound")
        if self.trim not in {True, False, None} or self.flip not in {True, False}:
            raise InputError(f"trim={self.trim}, flip={self.flip}: give true or false")
        for name in ("flip_except", "classes"):
            if not _are_names(getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)}: give a list of different names")
        if self.flip_except and not self.flip:
            raise InputError(f"flip_except={list(self.flip_except)}: says nothing where flip=false; leave one out")


def _are_names(given: object) -> bool:
    """Whether it is a list in which nothing occurs twice."""
    return isinstance(given, list | tuple) and len({str(name) for name in given}) == len(given)


def sources_of(group: str, given: Mapping[str, "str | Mapping[str, object] | MediaSource"]) -> dict[str, MediaSource]:
    """Read the sources of a group and refuse options that it has no use for.

    Args:
        group: ``train``, ``val`` or ``test``.
        given: a folder, or options, by the name of the source.

    Raises:
        InputError: for options that are not there, do not fit together or do not fit the group.
    """
    sources = {name: MediaSource.of(f"{group}.{name}", source) for name, source in given.items()}
    wrong = "all" if group == "train" else "random"
    for name, source in sources.items():
        if source.captions == wrong:
            other = "random" if group == "train" else "all"
            raise InputError(f"datamodule.{group}.{name}: captions={wrong} is not for {group}; use {other} or first")
        if source.caption_kinds and group != "train":
            raise InputError(
                f"datamodule.{group}.{name}: caption_kinds is for training; evaluation ranks captions of one kind: "
                "give caption_kind"
            )
        if source.caption_kind is not None and group == "train":
            raise InputError(f"datamodule.train.{name}: caption_kind is for evaluation; training takes caption_kinds")
    return sources

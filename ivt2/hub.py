"""A network in three lines: ``model, transform, tokenizer = ivt2.load("internvideo2-1b-stage2")``.

What ``load`` returns also encodes files, pictures, sounds and captions by itself.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn.functional import normalize

from ivt2.checkpoint import zoo
from ivt2.checkpoint.convert import convert
from ivt2.checkpoint.folder import STATE
from ivt2.checkpoint.manifest import MANIFEST
from ivt2.checkpoint.release import Card, Modality, Part, Release
from ivt2.checkpoint.released import load_released, read_facts
from ivt2.checkpoint.trained import Trained, load_trained
from ivt2.checkpoint.zoo import convert_command, find, page_of
from ivt2.data.inputs import AudioSource, AudioTransform, ClipTransform, VideoSource, each
from ivt2.data.sound import NUM_MELS
from ivt2.data.text import normalize_caption
from ivt2.data.tokenizer import WordPieceTokenizer
from ivt2.data.tokenizer_clip import ClipTokenizer
from ivt2.data.tokenizer_llama import LlamaTokenizer
from ivt2.errors import InputError
from ivt2.models.clip import ClipModel
from ivt2.models.features import audio_features, text_features, video_features
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.mobileclip import MobileClipText
from ivt2.models.stage2 import Stage2Model
from ivt2.models.stage2_audio import Stage2AudioVisualModel
from ivt2.models.videomae import VideoMAE
from ivt2.ops.device import usable_device

CACHE = Path("~/.cache/ivt2")
"""Where releases that were loaded by name stand converted."""
BERT_LENGTH = 40
"""Tokens of a caption for BERT. Source: reference multi_modality, demo of stage 2."""

Tokenizer = WordPieceTokenizer | ClipTokenizer | LlamaTokenizer

_VOCABULARIES = {
    "bert": ("vocab.txt",),
    "clip": ("tokenizer.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt"),
    "llama": ("tokenizer.model",),
}
"""Names of vocabulary files that are looked for beside the weights."""
_WORD_TABLE = re.compile(r"(embedding\.word|embed_tokens|(^|text_encoder\.)embedding)\.weight")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PIXELS: tuple[Modality, ...] = ("video", "image")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """A network with everything it needs to read what people have; unpacks into model, transform, tokenizer.

    Attributes:
        model: In evaluation mode, all weights from the release.
        transform: A video or picture to the uint8 clip that the model takes; add a batch dimension.
        tokenizer: Captions to ids and their validity; None where there is no text encoder or no vocabulary.
        audio_transform: A sound to the rows that the model takes; None where there is no audio encoder.
        card: What it is, reads and gives.
        folder: Where the weights are.
    """

    model: nn.Module
    transform: ClipTransform
    tokenizer: Tokenizer | None
    audio_transform: AudioTransform | None
    card: Card
    folder: Path

    def __repr__(self) -> str:
        """What was loaded, from where, what it reads and gives."""
        card = self.card
        frames = f", {card.num_frames} frames of {card.image_size} x {card.image_size}" * bool(
            {*_PIXELS} & {*card.modalities}
        )
        return f"Loaded({card.name} from {self.folder}: {', '.join(card.modalities)}{frames}; width {card.dim})"

    def __iter__(self) -> Iterator[nn.Module | ClipTransform | Tokenizer | None]:
        """Model, transform and tokenizer."""
        yield from (self.model, self.transform, self.tokenizer)

    def encode_video(
        self, videos: VideoSource | Sequence[VideoSource], *, batch_size: int = 8
    ) -> Float32[Tensor, "N E"]:
        """Unit-length features of videos and pictures, on the CPU.

        In the space that is compared with text where the model has one, otherwise the pooled vector (of VideoMAE the
        mean token).

        Args:
            videos: One, or a list of them: files, bytes, uint8 arrays, pictures. Decoded batch by batch.
            batch_size: Videos that the model sees at once.

        Raises:
            InputError: A video cannot be used, or the model takes none.
        """
        self._require(_PIXELS, "video encoder")
        sources: list[Any] = list(videos) if isinstance(videos, list | tuple) else [videos]
        return self._encode(each(sources, self.transform, kind="video"), video_features, batch_size)

    def encode_audio(
        self, sounds: AudioSource | Sequence[AudioSource], *, batch_size: int = 8
    ) -> Float32[Tensor, "N E"]:
        """Unit-length features of sounds, on the CPU.

        Args:
            sounds: One, or a list of them: files (videos too), bytes, or (samples, rate in Hz).
            batch_size: Sounds that the model sees at once.

        Raises:
            InputError: A sound cannot be used, or the model takes none.
        """
        self._require(("audio",), "audio encoder")
        sources: list[Any] = sounds if isinstance(sounds, list) else [sounds]
        assert self.audio_transform is not None
        return self._encode(each(sources, self.audio_transform, kind="sound"), audio_features, batch_size)

    def encode_text(self, captions: str | Sequence[str], *, batch_size: int = 64) -> Float32[Tensor, "N E"]:
        """Unit-length features of captions, on the CPU.

        Captions are normalised as in training (lower case, no punctuation) first.

        Args:
            captions: One, or a list of them.
            batch_size: Captions that the model sees at once.

        Raises:
            InputError: A caption is empty, the model takes no text, or its vocabulary is not there.
        """
        self._require(("text",), "text encoder")
        texts = list(captions) if isinstance(captions, list | tuple) else [captions]
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise InputError(f"{self.card.name}: no vocabulary, so captions cannot be read; {self._vocabulary_hint()}")

        def ids(caption: Any) -> Tensor:
            if not isinstance(caption, str):
                raise InputError(f"{type(caption).__name__} is no caption; give a str or a list of them")
            text = normalize_caption(caption)
            if not text:
                raise InputError(f"{caption!r} has no words; leave it out")
            return torch.stack([row[0] for row in tokenizer([text])])

        return self._encode(each(texts, ids, kind="caption"), text_features, batch_size)

    @staticmethod
    def similarity(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> Float32[Tensor, "N M"]:
        """Cosine of every row of one matrix with every row of another.

        Args:
            a: Features [N, E] of any length, or one vector [E].
            b: Features [M, E], or one vector.

        Raises:
            InputError: They are not of one width.
        """
        rows, columns = (torch.as_tensor(one).float() for one in (a, b))
        rows, columns = (one[None] if one.ndim == 1 else one for one in (rows, columns))
        if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
            raise InputError(
                f"features {list(rows.shape)} and {list(columns.shape)} cannot be compared; give [N, E] and [M, E]"
            )
        return normalize(rows, dim=-1) @ normalize(columns, dim=-1).T

    @torch.no_grad()
    def _encode(
        self, items: Iterator[Tensor], features: Callable[[nn.Module, Tensor], Tensor], batch_size: int
    ) -> Float32[Tensor, "N E"]:
        """Run batches of items of one shape each, in the order of the items."""
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: must be at least 1")
        weight = next(self.model.parameters())
        rows: list[Tensor] = []
        while chunk := list(islice(items, batch_size)):
            found: dict[int, Tensor] = {}
            for shape in {item.shape for item in chunk}:
                places = [index for index, item in enumerate(chunk) if item.shape == shape]
                batch = torch.stack([chunk[index] for index in places]).to(weight.device)
                batch = batch.to(weight.dtype) if batch.is_floating_point() else batch
                found |= dict(zip(places, normalize(features(self.model, batch).float(), dim=-1).cpu(), strict=True))
            rows += [found[index] for index in range(len(chunk))]
        return torch.stack(rows) if rows else torch.empty(0, self.card.dim)

    def _require(self, modalities: tuple[Modality, ...], what: str) -> None:
        if set(modalities) & set(self.card.modalities):
            return
        able = [one for one in zoo.RELEASES.values() if set(modalities) & set(one.modalities)]
        able.sort(key=lambda one: -len(one.modalities))
        names = ", ".join(one.name for one in able[:4])
        raise InputError(f"{self.card.name} has no {what}: load a release that has one, such as {names}")

    def _vocabulary_hint(self) -> str:
        file, source = zoo.TOKENIZERS[str(self.card.tokenizer)]
        return f"get {file} from {page_of(source)} and put it into {self.folder}, or load with tokenizer_file=<file>"


def load(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    num_frames: int | None = None,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    tokenizer_file: str | Path | None = None,
    cache_dir: str | Path | None = None,
    student: str | None = None,
) -> Loaded:
    """Load a released or a trained network, all its weights from its files and none at a random start.

    A name is looked up in the cache; what is not there is downloaded from the Hugging Face hub, converted and kept. So
    the first time takes disk space twice.

    Args:
        name_or_path: A release, see ``python -m ivt2.cli.zoo``; a folder that ``python -m ivt2.cli.convert`` wrote; or
            a checkpoint of ``train.py``, such as ``outputs/<run>/checkpoints/last.ckpt``.
        revision: Branch, tag or commit of the repository of the release's last part, where it is loaded by name; the
            others come from their main branch. The commits are recorded in the converted folder.
        num_frames: Frames of a clip where they shall differ from the release's: position tables are resized.
        image_size: Side of a frame in pixels, likewise.
        device: Where the weights go; the CPU if None.
        dtype: Of the weights.
        tokenizer_file: Vocabulary, where none lies beside the weights.
        cache_dir: Where converted releases and downloads are kept; ``~/.cache/ivt2`` and huggingface_hub's own if None.
        student: Which one of a distillation of several.

    Returns:
        The network with its transforms and tokenizer.

    Raises:
        InputError: There is no such release or folder, parts of it cannot be had (each is listed with its source and
            what to type), the folder is damaged, or the sizes asked for are not possible.
    """
    _require_possible(name_or_path, dtype, num_frames=num_frames, image_size=image_size)
    device = usable_device(device or "cpu")
    by_name = isinstance(name_or_path, str) and name_or_path in zoo.RELEASES
    if revision is not None and not by_name:
        raise InputError(f"revision={revision}: only releases that are loaded by name have revisions; leave it out")
    folder = None if by_name else _existing_folder(name_or_path)
    if folder is not None and (folder / STATE).is_file():
        if num_frames is not None or image_size is not None:
            raise InputError(f"{folder}: a run of train.py keeps its sizes; leave num_frames and image_size out")
        network = load_trained(folder, student=student)
        card = _card_of_run(network, folder)
        _require_text(card, tokenizer_file)
        return _loaded(network.to(device, dtype), card, folder, tokenizer_file)
    if student is not None:
        raise InputError(f"student={student}: {name_or_path} is no run of train.py; leave it out")
    release = find(str(name_or_path) if folder is None else read_facts(folder)[0].release)
    if num_frames is not None and "video" not in release.modalities:
        raise InputError(f"num_frames={num_frames}: {release.name} reads no video; leave it out")
    _require_text(release, tokenizer_file)
    frames, side = num_frames or release.num_frames, image_size or release.image_size
    with torch.device("meta"):  # before anything is fetched: sizes that are not possible are refused here
        model = release.build(frames, side)
    if folder is None:
        folder = _fetched(release, revision, None if cache_dir is None else Path(cache_dir).expanduser())
    load_released(folder, model, release=release, num_frames=frames, dtype=dtype, device=device)
    return _loaded(model.to(device), replace(release, num_frames=frames, image_size=side), folder, tokenizer_file)


def _require_possible(name_or_path: object, dtype: object, **sizes: object) -> None:
    """Refuse what no network could be loaded with, before anything is looked up or fetched."""
    if not isinstance(name_or_path, str | Path) or not str(name_or_path):
        raise InputError(f"{name_or_path!r}: give a release's name or the path of a folder")
    if dtype not in _DTYPES:
        raise InputError(f"dtype={dtype}: choose one of {', '.join(map(str, _DTYPES))}")
    for key, value in sizes.items():
        if value is not None and not (type(value) is int and value > 0):
            raise InputError(f"{key}={value!r}: give a whole number of at least 1")


def _loaded(model: nn.Module, card: Card, folder: Path, tokenizer_file: str | Path | None) -> Loaded:
    return Loaded(
        model=model.eval(),
        transform=ClipTransform(card.num_frames, card.image_size),
        tokenizer=_open_tokenizer(card, model, folder, tokenizer_file),
        audio_transform=None if card.num_mels is None else AudioTransform(card.num_mels),
        card=card,
        folder=folder,
    )


def _require_text(card: Card, tokenizer_file: str | Path | None) -> None:
    if tokenizer_file is not None and card.tokenizer is None:
        raise InputError(f"tokenizer_file={tokenizer_file}: {card.name} has no text encoder; leave it out")


def _card_of_run(network: Trained, folder: Path) -> Card:
    encoder: InternVideo2 | VideoMAE
    modalities: tuple[Modality, ...]
    match network:
        case ClipModel():
            encoder, dim, modalities = network.vision_encoder, network.text_encoder.projection_dim, (*_PIXELS, "text")
        case Stage2Model():
            sound: tuple[Modality, ...] = ("audio",) if isinstance(network, Stage2AudioVisualModel) else ()
            encoder, dim = network.vision_encoder, network.vision_proj.out_features
            modalities = (*_PIXELS, *sound, "text")
        case InternVideo2():
            encoder, dim, modalities = network, network.pooled_dim, _PIXELS
        case VideoMAE():
            encoder, dim, modalities = network, network.embed_dim, ("video",)
    return Card(
        name=str(folder),
        title="A run of train.py",
        modalities=modalities,
        num_frames=encoder.num_frames,
        image_size=encoder.image_size,
        dim=dim,
        tokenizer=_tokenizer_of(network) if "text" in modalities else None,
        num_mels=NUM_MELS if "audio" in modalities else None,
    )


def _tokenizer_of(network: Trained) -> Literal["bert", "llama", "clip"]:
    text = network.text_encoder if isinstance(network, ClipModel) else None
    if isinstance(text, MobileClipText):
        return "clip" if text.pool == "argmax" else "bert"
    return "bert" if text is None else "llama"


def _existing_folder(path: str | Path) -> Path:
    """A folder by its path.

    Raises:
        InputError: There is none; a file of weights is told from a mistyped name.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{path}: is a file; convert it first: {_command_for(path)}, then load that folder")
    if path.name != str(path) or path.suffix:
        raise InputError(f"{path}: does not exist; give a release's name or a folder that ivt2.cli.convert wrote")
    find(str(path))
    raise InputError(f"{path}: does not exist")


def _command_for(file: Path) -> str:
    """What converts a file, with the base that it needs where its name tells that it is a part."""
    known = [(one, part) for one in zoo.RELEASES.values() for part in one.parts if Path(part.file).name == file.name]
    alone = [pair for pair in known if len(pair[0].parts) == 1]
    for pairs in (alone, known):
        if len(pairs) == 1:  # names such as pytorch_model.bin tell nothing
            release, part = pairs[0]
            return convert_command(release, files={part.name: file})
    return f"python -m ivt2.cli.convert release=<release> files.model={file} output=<folder>"


def _fetched(release: Release, revision: str | None, cache_dir: Path | None) -> Path:
    """The converted folder of a release, made now where it is not there yet."""
    root = CACHE.expanduser() if cache_dir is None else cache_dir
    folder = root / (release.name if revision is None else f"{release.name}@{revision.replace('/', '_')}")
    if not (folder / MANIFEST).is_file():
        downloads = None if cache_dir is None else cache_dir / "downloads"
        parts, files = _download_parts(release, revision, downloads, folder)
        convert(replace(release, parts=parts), files, folder)
        _download_vocabulary(release, downloads, folder)
    return folder


def _download_parts(
    release: Release, revision: str | None, downloads: Path | None, folder: Path
) -> tuple[tuple[Part, ...], dict[str, Path]]:
    """Files of all parts, and the parts with the commits that they came from.

    Nothing is downloaded where a part is not on the hub: files that are there already are found all the same.

    Raises:
        InputError: Parts that cannot be had.
    """
    by_hand = any("://" in part.source for part in release.parts)
    local = by_hand
    parts: list[Part] = []
    files: dict[str, Path] = {}
    missing: list[str] = []
    for part in release.parts:
        reason = ""
        if "://" not in part.source:
            wanted = revision if part is release.parts[-1] else None
            try:
                files[part.name], commit = _download(part.source, part.file, wanted, downloads, local=local)
                parts.append(replace(part, source=f"{part.source}@{commit}"))
                continue
            except OSError as error:
                reason = "" if by_hand else f"; {_reason(error)}"
                local = local or _unreachable(error)
        size = "size not stated" if part.num_bytes is None else f"{part.num_bytes:,} bytes"
        missing.append(f"  {part.name}: {part.file} ({size}) from {page_of(part.source)}{reason}")
    if missing:
        command = convert_command(release, str(folder), files)
        raise InputError(
            f"{release.name}: {len(missing)} of {len(release.parts)} parts are missing:\n" + "\n".join(missing) +
            f"\nget them, type\n  {command}\nand load again"
        )  # fmt: skip
    return tuple(parts), files


def _download(source: str, file: str, revision: str | None, downloads: Path | None, *, local: bool) -> tuple[Path, str]:
    """A file of a repository on the hub, and the commit it belongs to.

    Raises:
        OSError: It cannot be had.
    """
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(source, file, revision=revision, cache_dir=downloads, local_files_only=local))
    commit = path.parts[-1 - len(Path(file).parts)]
    if not _COMMIT.fullmatch(commit):
        raise OSError(f"{path}: stands under no commit of {source}")
    return path, commit


def _unreachable(error: OSError) -> bool:
    """Whether there is no connection: every further try would wait for it again."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(error, LocalEntryNotFoundError)


def _reason(error: OSError) -> str:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError

    if isinstance(error, GatedRepoError):
        return "gated: ask for access on that page, then type `hf auth login`"
    if _unreachable(error):
        return "the hub cannot be reached"
    if isinstance(error, EntryNotFoundError):
        return "that repository has no such file"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _download_vocabulary(release: Release, downloads: Path | None, folder: Path) -> None:
    """Put the vocabulary beside the weights where it is on the hub; without it the rest still works."""
    if release.tokenizer is None or "://" in zoo.TOKENIZERS[release.tokenizer].source:
        return
    file, source = zoo.TOKENIZERS[release.tokenizer]
    try:
        path, _ = _download(source, file, None, downloads, local=False)
    except OSError:
        return
    shutil.copyfile(path, folder / file)


def _open_tokenizer(card: Card, model: nn.Module, folder: Path, tokenizer_file: str | Path | None) -> Tokenizer | None:
    """Tokenizer of the given vocabulary, or of the one beside the weights.

    Raises:
        InputError: It is not a vocabulary of the network's kind and size.
    """
    if card.tokenizer is None:
        return None
    beside = [folder / name for name in _VOCABULARIES[card.tokenizer]]
    file = tokenizer_file or next((path for path in beside if path.is_file()), None)
    if file is None:
        return None
    tokenizer: Tokenizer
    text = model.text_encoder if isinstance(model, ClipModel) else model
    places = text.context_length if isinstance(text, MobileClipText) else None  # padded to it, tokens have their places
    if card.tokenizer == "bert":
        tokenizer = WordPieceTokenizer(file, max_length=places or BERT_LENGTH)
    else:
        tokenizer = LlamaTokenizer(file) if places is None else ClipTokenizer(file, max_length=places)
    num_tokens = tokenizer.vocabulary.size
    rows = next(len(weight) for name, weight in model.named_parameters() if _WORD_TABLE.search(name))
    # LLaMA's table has a row for padding that its vocabulary lacks; the table of a run may have rows to spare.
    if not 0 <= rows - num_tokens <= (1 if isinstance(card, Release) else rows):
        raise InputError(f"{file}: has {num_tokens} tokens, {card.name} knows {rows}; give its own vocabulary")
    return tokenizer

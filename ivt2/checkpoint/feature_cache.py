"""What a frozen teacher said about a clip, kept on disk: for sets that are small and cut the same way every epoch."""

import hashlib
import logging
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from ivt2.checkpoint.tensors import read_tensors, write_tensors
from ivt2.errors import InputError
from ivt2.models.teacher import Teacher, TeacherDtype, TeacherFeatures
from ivt2.ops.hashing import digest

_LOG = logging.getLogger(__name__)

_FORMAT = "ivt2 teacher features 1"
"""To be raised by whoever changes what the same weights say."""
_OF_ANY_MODULE = frozenset(vars(nn.Module()))
_CHECKSUM = "crc32"
_PARTIAL = ".partial"
_PARTIAL_S = 3600.0
_SHARE = 16
_PATIENCE = 10_000


class CachedTeacher(Teacher):
    """Asks a teacher about each clip once and reads its answer ever after.

    A clip's key is the digest of its pixels, so one that was cut otherwise is another clip, and what is read is bit
    for bit what was said the first time. (A teacher may say the same in other last bits where other clips stand beside
    it in the batch; a cache keeps the first.)

    Args:
        teacher: Who is asked; its format and device may still change before the first clip.
        folder: Where answers are kept, in a folder of this teacher's fingerprint. Any number of processes and teachers
            may share it, at the same time too.
        max_gib: Room for this teacher's answers in GiB; nothing is added when it is used up. Exact for up to 16
            processes at once.

    Raises:
        InputError: The folder cannot be written, or there is no room.
    """

    def __init__(self, teacher: Teacher, folder: Path, *, max_gib: float) -> None:
        super().__init__(teacher.encoder, taps=teacher.taps, normalize=teacher.normalize)
        self.teacher = teacher
        self.num_prefix = teacher.num_prefix
        self.gives_attention = teacher.gives_attention
        if not max_gib > 0:
            raise InputError(f"teacher's cache_gib={max_gib}: give the room that its cache may take, above 0")
        self._folder = _writable(folder)
        self._max_bytes = int(max_gib * 2**30)
        self._answers: Answers | None = None
        self._state: list[tuple[torch.dtype, torch.device, int]] = []
        self._num_asked = 0
        self._num_found = 0

    def set_format(self, dtype: TeacherDtype, *, compile: bool = False, min_cosine: float = 0.999) -> "Teacher":
        """Of the teacher inside; see :meth:`Teacher.set_format`."""
        self._answers = None
        self.teacher.set_format(dtype, compile=compile, min_cosine=min_cosine)
        return self

    @property
    def final_dim(self) -> int | None:
        """Width of the pooled vector; None where there is none."""
        return self.teacher.final_dim

    def _resized(self, video: Tensor) -> Tensor:
        """As they come: who is asked resizes them."""
        return video

    def _features(self, video: Tensor) -> TeacherFeatures:
        if not len(video):
            return self.teacher.unnormalized(video)
        answers = self._open()
        keys = [f"{low % 2**64:016x}{high % 2**64:016x}" for low, high in digest(video).tolist()]
        known = {key: answer for key in dict.fromkeys(keys) if (answer := answers.read(key)) is not None}
        rows = {key: row for row, key in enumerate(keys) if key not in known}
        self._count(len(keys), len(known))
        if rows:
            said = self.teacher.unnormalized(video if len(rows) == len(keys) else video[list(rows.values())])
            answers = self._open()  # float8 begins with the first clips: it is another teacher from then on
            for key, answer in zip(rows, _of_clips(said, len(rows)), strict=True):
                answers.write(key, answer)
                known[key] = answer
            if len(rows) == len(keys):
                return said
        return _of_batch([known[key] for key in keys], video.device)

    def _open(self) -> "Answers":
        """Of the teacher as it is now: moved, in another format or with other weights it is looked at again."""
        state = [(tensor.dtype, tensor.device, tensor._version) for _, tensor in _tensors(self.teacher)]
        if self._answers is None or state != self._state:
            self._state = state
            self._answers = Answers(self._folder / fingerprint(self.teacher), max_bytes=self._max_bytes)
        return self._answers

    def _count(self, num_asked: int, num_found: int) -> None:
        """Say once that a cache is of no use."""
        before = self._num_asked
        self._num_asked += num_asked
        self._num_found += num_found
        if not self._num_found and before < _PATIENCE <= self._num_asked:
            _LOG.warning(
                "%s: none of %d clips was there; unless this is still the first epoch, clips are cut otherwise each "
                "time and a cache only costs: set the teacher's cache=null, or transforms and frames without chance",
                self._folder,
                self._num_asked,
            )


class Answers:
    """One file for each clip, whole or not there; reading and writing take no lock.

    Args:
        folder: Of one teacher.
        max_bytes: Room.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._allowance = 0
        self._closed = False
        for path in folder.glob(f"*{_PARTIAL}"):  # of processes that were killed
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _PARTIAL_S:
                    path.unlink()

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a clip, backed by the file; None where there are none, or not the ones that were written."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            tensors = read_tensors(path)
        except InputError:
            tensors = {}
        checksum = tensors.pop(_CHECKSUM, None)
        if checksum is None or int(checksum) != _checksum(tensors):
            _LOG.warning("%s: damaged; the teacher is asked again", path)
            return None
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a clip while there is room; one that is there already is replaced."""
        if self._closed:
            return
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        # A name of its own: several processes may write one clip at once.
        partial = self._folder / f"{key}-{uuid.uuid4().hex}{_PARTIAL}"
        try:
            if not self._fits(sum(tensor.nbytes for tensor in stored.values())):
                self._close(f"{self._max_bytes / 2**30:g} GiB are used up; raise the teacher's cache_gib")
                return
            write_tensors(partial, stored | {_CHECKSUM: torch.tensor(_checksum(stored))})
            partial.replace(self._path(key))
        except OSError as error:
            partial.unlink(missing_ok=True)
            self._close(f"{error}; make room")

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _close(self, why: str) -> None:
        self._closed = True
        _LOG.warning("%s: no more answers of the teacher are kept: %s", self._folder, why)

    def _fits(self, num_bytes: int) -> bool:
        """Whether there is room; what others wrote is looked up after every sixteenth of the rest."""
        if num_bytes > self._allowance:
            self._folder.mkdir(parents=True, exist_ok=True)
            room = self._max_bytes - self._used()
            if room < num_bytes:
                return False
            self._allowance = max(room // _SHARE, num_bytes)
        self._allowance -= num_bytes
        return True

    def _used(self) -> int:
        used = 0
        with os.scandir(self._folder) as files:
            for file in files:
                with suppress(FileNotFoundError):
                    used += file.stat().st_size
        return used


def fingerprint(teacher: Teacher) -> str:
    """Name of all that decides what a teacher says: classes, plain settings, weights and buffers of all its parts.

    Device, compilation and precision of matrix products are not part of it: they change the last bits at most.

    Args:
        teacher: With its weights, in the format that it will be asked in.
    """
    facts = [_FORMAT]
    for name, module in teacher.named_modules():
        facts.append(f"{name}: {type(module).__module__}.{type(module).__qualname__}")
        settings = {key: value for key, value in vars(module).items() if key not in _OF_ANY_MODULE}
        facts += [f"{key}={settings[key]!r}" for key in sorted(settings) if _is_plain(settings[key])]
    digests = []
    for name, tensor in _tensors(teacher):
        facts.append(f"{name}: {tensor.dtype} {tuple(tensor.shape)}")
        digests.append(digest(tensor.reshape(1, -1)))
    if digests:
        facts.append(str(torch.cat(digests).tolist()))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def _tensors(teacher: Teacher) -> Iterator[tuple[str, Tensor]]:
    yield from teacher.named_parameters()
    yield from teacher.named_buffers()


def _is_plain(value: object) -> bool:
    """Whether a setting of a module is a number or a word: the text of other objects may be an address."""
    values = value if isinstance(value, tuple | list) else (value,)
    return all(each is None or isinstance(each, bool | int | float | str) for each in values)


def _of_clips(said: TeacherFeatures, num_clips: int) -> list[dict[str, Tensor]]:
    clips = [{"middle": said.middle[:, row]} for row in range(num_clips)]
    for name, tensor in (("final", said.final), ("attention", said.attention)):
        if tensor is not None:
            for clip, part in zip(clips, tensor.chunk(num_clips), strict=True):
                clip[name] = part
    return clips


def _of_batch(clips: Sequence[Mapping[str, Tensor]], device: torch.device) -> TeacherFeatures:
    parts = {name: [clip[name].to(device) for clip in clips] for name in clips[0]}
    final, attention = (torch.cat(parts[name]) if name in parts else None for name in ("final", "attention"))
    return TeacherFeatures(torch.stack(parts["middle"], dim=1), final, attention)


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"teacher's cache={folder}: not a folder that can be written; name one, or cache=null")
    return folder

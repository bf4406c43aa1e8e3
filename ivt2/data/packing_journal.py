"""What is done of a set of shards that is being packed, in the folder ``.packing`` beside the shards.

``plan.json`` says what is packed and how, ``task-<number>.json`` what a finished task made, ``part-<part>.json`` that
all tasks of a part are finished. Nothing here is needed once ``manifest.json`` is there.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivt2.data.files import is_at, replace_file, try_lock
from ivt2.data.manifest import MANIFEST_NAME, PACKING_NAME, ShardInfo
from ivt2.data.media_files import file_state
from ivt2.errors import InputError

_PLAN = "plan.json"
_SHARD_FILE = re.compile(r"\.?shard-\d{6,}(_\d+)?\.(tar|index)(\.partial)?")
RECORDS = "records"
"""What the annotations said, through the options of their source."""

_ANEW = "finish it with its own options, choose another folder or set overwrite=true"
_PATIENCE_S = 2.0  # the workers of a run that was killed end a moment after it


@dataclass(frozen=True, kw_only=True)
class LostRecord:
    """A record that could not be packed.

    Args:
        key: its file, or its place in the annotations.
        reason: why.
        from_media: whether its file was to blame and not the annotations.
        state: of that file, as ``file_state`` says it.
    """

    key: str
    reason: str
    from_media: bool
    state: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """What a task made.

    Args:
        records: hash of its records.
        num_records: how many they were.
        lost: those that could not be packed, in order.
        shards: of the others, in order.
    """

    records: str
    num_records: int
    lost: tuple[LostRecord, ...]
    shards: tuple[ShardInfo, ...]


class Journal:
    """The account of one set of shards.

    Args:
        folder: of the shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / PACKING_NAME

    @property
    def exists(self) -> bool:
        """Whether a packing was begun here and not finished."""
        return (self._path / _PLAN).exists()

    @contextmanager
    def begun(self, plan: Mapping[str, Any], *, part: int, overwrite: bool) -> Iterator[None]:
        """Hold a part of the work alone, from where it was left.

        Args:
            plan: what identifies the work; a folder holds one work at a time. ``num_parts`` says how many parts it has.
            part: number of the part.
            overwrite: begin anew, whatever is there.

        Raises:
            InputError: when another process holds the part, the folder holds another work or cannot be written.
        """
        num_parts = plan["num_parts"]
        with ExitStack() as stack:
            try:
                with self._alone("plan"):  # before the part, or two parts that begin at once would wait for each other
                    stack.enter_context(self._alone(_lock_of(part)))
                    self._take(plan, part=part, overwrite=overwrite)
                if overwrite:
                    self._forget(part, num_parts)
            except OSError as error:
                raise InputError(
                    f"{self.folder}: cannot be written ({error.strerror}); choose another folder"
                ) from error
            yield

    def entry(self, number: int, records: str, media_root: str) -> TaskEntry | None:
        """What a task has made, None when it has to be done (again).

        Args:
            number: of the task.
            records: hash of its records.
            media_root: folder of the files; a file that could not be used before and has changed since is tried again.

        Raises:
            InputError: when the task had other records.
        """
        entry = self.read(number)
        if entry is None:
            return None
        if entry.records != records:
            if entry.shards:
                raise InputError(self._is_of_another([RECORDS]))
            return None
        lost = [record for record in entry.lost if record.from_media]
        unchanged = all(file_state(f"{media_root}/{record.key}") == record.state for record in lost)
        return entry if unchanged and all(map(self._is_whole, entry.shards)) else None

    def write(self, number: int, entry: TaskEntry) -> None:
        """Enter what a task has made; its shards are in their places."""
        # not synced: whether the shards are whole is looked at when the entry is read
        temporary = self._path / f".task-{number:06d}.partial"
        temporary.write_text(json.dumps(asdict(entry)))
        temporary.replace(self._task(number))

    def end_part(self, part: int, *, num_tasks: int, records: str) -> None:
        """Enter that all tasks of a part are finished.

        Args:
            part: its number.
            num_tasks: of all parts.
            records: hash of the records of all parts.
        """
        text = json.dumps({"num_tasks": num_tasks, "records": records, "plan": self._plan()})
        replace_file(self._part(part), text.encode())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold all parts.

        Raises:
            InputError: when another process holds one, or there are none.
        """
        if not self.exists:
            raise InputError(
                f"{self.folder}: holds no parts of a packing; run `python -m ivt2.cli.shards` with its parts"
            )
        with ExitStack() as stack:
            for part in range(self._plan()["num_parts"]):
                stack.enter_context(self._alone(_lock_of(part)))
            yield

    def finished(self) -> tuple[dict[str, Any], list[TaskEntry], str]:
        """Return the plan, what each task made, and the hash of all records, once all parts are finished.

        Raises:
            InputError: when a part is not finished, or parts differ in their records or options.
        """
        plan = self._plan()
        num_parts = plan["num_parts"]
        paths = {part: self._part(part) for part in range(num_parts)}
        parts = {part: json.loads(path.read_text()) for part, path in paths.items() if path.exists()}
        if absent := [str(part) for part in paths if part not in parts]:
            raise InputError(
                f"{self.folder}: not finished of {num_parts} parts: {', '.join(absent)}; run the same command with "
                f"part={absent[0]} num_parts={num_parts}"
            )
        if any(facts != {**parts[0], "plan": plan} for facts in parts.values()):
            raise InputError(f"{self.folder}: its parts are not of the same records and options; {_ANEW}")
        entries = [self.read(number) for number in range(parts[0]["num_tasks"])]
        if None in entries:
            raise InputError(f"{self._path}: an entry of a finished part is gone; run that part again")
        return plan, [entry for entry in entries if entry is not None], parts[0]["records"]

    def tidy(self, names: Sequence[str]) -> None:
        """Remove what an interrupted run left behind.

        Args:
            names: the files that belong to the shards.
        """
        keep = set(names)
        for name in os.listdir(self.folder):  # noqa: PTH208  # a hundred thousand names
            if _SHARD_FILE.fullmatch(name) and name not in keep:
                (self.folder / name).unlink()

    def remove(self) -> None:
        """Forget the account; the manifest has taken its place."""
        shutil.rmtree(self._path, ignore_errors=True)

    def _plan(self) -> dict[str, Any]:
        return dict(json.loads((self._path / _PLAN).read_text()))

    def _is_of_another(self, what: Sequence[str]) -> str:
        return f"{self.folder}: holds part of another packing (with other {', '.join(what)}); {_ANEW}"

    def _take(self, plan: Mapping[str, Any], *, part: int, overwrite: bool) -> None:
        """Make a plan the one of the folder; what is there of another plan stays unless it is to be overwritten."""
        earlier = self._plan() if self.exists else None
        manifest = self.folder / MANIFEST_NAME
        if manifest.exists() and not overwrite:  # it was not there when this process looked, before it had the lock
            raise InputError(f"{self.folder}: was finished by another process meanwhile; run the same command again")
        # with several parts, the first one to come clears what is there
        if earlier == plan and not (overwrite and (plan["num_parts"] == 1 or manifest.exists())):
            return
        if earlier is not None and not overwrite and any(map(_SHARD_FILE.fullmatch, os.listdir(self.folder))):  # noqa: PTH208
            raise InputError(self._is_of_another(differences(earlier, plan)))
        with ExitStack() as stack:
            for path in self._path.glob("part-*.lock"):
                if path.stem != _lock_of(part):
                    stack.enter_context(self._alone(path.stem))
            self._clear(shards=overwrite)
            replace_file(self._path / _PLAN, json.dumps(plan).encode())

    def _clear(self, *, shards: bool) -> None:
        """Remove the entries of an earlier work, and its shards with their manifest if they are to go."""
        if shards:
            (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
            self.tidy([])
        for path in (*self._path.glob("task-*.json"), *self._path.glob("part-*.json")):
            path.unlink()

    def _forget(self, part: int, num_parts: int) -> None:
        """Remove what a part has entered."""
        self._part(part).unlink(missing_ok=True)
        for path in self._path.glob("task-*.json"):
            if int(path.stem.removeprefix("task-")) % num_parts == part:
                path.unlink()

    def read(self, number: int) -> TaskEntry | None:
        """What a task has made, as far as it was entered."""
        try:
            facts = json.loads(self._task(number).read_text())
            lost = tuple(LostRecord(**record) for record in facts.pop("lost"))
            return TaskEntry(**facts | {"lost": lost, "shards": tuple(ShardInfo(**s) for s in facts["shards"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):  # a power cut came before the disk had it
            return None

    def _is_whole(self, shard: ShardInfo) -> bool:
        try:
            index = (self.folder / shard.index_name).read_bytes()
            size = (self.folder / shard.name).stat().st_size
        except OSError:
            return False
        return size == shard.bytes and hashlib.sha256(index).hexdigest() == shard.index_sha256

    def _task(self, number: int) -> Path:
        return self._path / f"task-{number:06d}.json"

    def _part(self, part: int) -> Path:
        return self._path / f"part-{part:05d}.json"

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold a lock among all processes; those forked from this one hold it until they end."""
        path = self._path / f"{name}.lock"
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            self._path.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
            with ExitStack() as stack:
                stack.callback(file.close)
                # a lock file may have been removed, with all others, by the process that held it before
                if try_lock(file.fileno()) and is_at(file.fileno(), path):
                    stack.pop_all()
                    break
            if time.monotonic() > deadline:
                raise InputError(f"{self.folder}: another process packs into it; wait for its end or stop it")
            time.sleep(0.05)
        with file:
            yield


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the facts in which two plans differ."""
    return [name for name in dict.fromkeys([*earlier, *now]) if earlier.get(name) != now.get(name)]


def _lock_of(part: int) -> str:
    return f"part-{part:05d}"

"""Packing: annotated media files become shards, on as many processes and machines as there are.

The main process reads the records and deals them into tasks; workers pack one task after the other. What is finished is
kept in a journal until the manifest is written, so a packing that was killed goes on where it was. The bytes depend
neither on the number of processes and machines nor on interruptions.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ivt2.batch import Skipped
from ivt2.data.annotations import Source
from ivt2.data.files import replace_file
from ivt2.data.ledger import Ledger
from ivt2.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, SourceFile, read_manifest, tool
from ivt2.data.media_files import file_state
from ivt2.data.packing_journal import RECORDS, Journal, TaskEntry, differences
from ivt2.data.packing_plan import HashSplit, Task, deal
from ivt2.data.packing_pool import WorkerPool
from ivt2.data.packing_task import Prepares, TaskPacker
from ivt2.data.shard_file import sync_shards
from ivt2.data.workers import num_cores
from ivt2.errors import InputError

SKIPPED_NAME = "skipped.jsonl"
"""List of the records that are not in the shards, beside them."""

_NUM_PARTS = "num_parts"
_SOURCES = "annotation files"


def pack(
    source: Source,
    media_root: str | Path,
    folder: str | Path,
    *,
    preparation: Prepares,
    ledger: Ledger,
    max_samples: int = 1000,
    max_bytes: int = 1 << 30,
    num_processes: int | None = None,
    part: int = 0,
    num_parts: int = 1,
    split: HashSplit | None = None,
    shuffle_seed: int | None = None,
    timeout_s: float = 1800.0,
    overwrite: bool = False,
    annotation_files: Sequence[str | Path] = (),
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Pack annotated media files into shards, or go on where an interrupted packing was.

    Args:
        source: of the records.
        media_root: folder that the records' files are relative to.
        folder: where the shards go.
        preparation: of each file.
        ledger: counts the records that cannot be used and stops beyond its budget; what is done by then is kept.
        max_samples: samples of a shard.
        max_bytes: bytes of a shard's members; one sample may be larger.
        num_processes: workers; None for one on each CPU core that this process may use.
        part: which part of the work is done, from 0; the others are for other machines.
        num_parts: how many parts there are; ``merge_parts`` joins several.
        split: the records that are packed; None for all.
        shuffle_seed: packs them in an order drawn from it; None keeps the order of the source.
        timeout_s: seconds that one record may take.
        overwrite: begin anew, and replace shards that are there.
        annotation_files: what the records were read from; the manifest names them with their hash.
        on_progress: called several times a second with the number of records done.

    Returns:
        The manifest as written; with several parts, that of this part, which is not written.

    Raises:
        InputError: when the media folder is absent, the shard folder cannot be written or holds something else, or
            nothing could be packed.
    """
    folder, media_root = Path(folder), Path(media_root)
    split = HashSplit() if split is None else split
    _check(media_root, max_samples=max_samples, max_bytes=max_bytes, part=part, num_parts=num_parts)
    sources = tuple(SourceFile.of(Path(file)) for file in annotation_files)
    facts = {
        "tool": tool(),
        "source": source.name,
        "max_samples": max_samples,
        "max_bytes": max_bytes,
        "shuffle_seed": shuffle_seed,
        "split": split.facts(),
        "preparation": preparation.facts(),
    }
    packing = Manifest((), sources, json.loads(json.dumps(facts)))  # as it is read again
    tasks = _Tasks(deal(source, split=split, shuffle_seed=shuffle_seed, max_records=max_samples))
    earlier = None if overwrite else read_manifest(folder)
    if earlier is not None:
        return _unchanged(folder, earlier, packing, tasks)
    journal = Journal(folder)
    if not overwrite and not journal.exists and any(folder.glob("*.tar")):
        raise InputError(f"{folder}: already holds other shards; choose another folder or set overwrite=true")
    packer = TaskPacker(folder, str(media_root), preparation=preparation, max_samples=max_samples, max_bytes=max_bytes)
    with journal.begun(_plan(packing, num_parts), part=part, overwrite=overwrite):
        account = _Account(source.name, ledger, on_progress)
        workers = num_cores() if num_processes is None else num_processes
        mine = (task for task in tasks if task.number % num_parts == part)
        with WorkerPool(packer, num_processes=workers, timeout_s=timeout_s) as pool:
            for number in pool.run(_unfinished(mine, journal, account, packer.media_root), account.show):
                account.enter(number, journal.read(number))
        sync_shards(folder, account.shards)
        journal.end_part(part, num_tasks=tasks.num, records=tasks.digest)
        if num_parts > 1:
            return Manifest(tuple(account.shards), sources, packing.packing)
        return _written(journal, *journal.finished())


def merge_parts(folder: str | Path, ledger: Ledger) -> Manifest:
    """Join the parts that several machines packed: write the manifest of all their shards.

    Args:
        folder: of the shards.
        ledger: gets the records that could not be used.

    Returns:
        The manifest as written.

    Raises:
        InputError: when a part is not finished or the folder holds no parts.
    """
    folder = Path(folder)
    journal = Journal(folder)
    earlier = None if journal.exists else read_manifest(folder)
    if earlier is not None:
        return earlier
    with journal.held():
        plan, entries, records = journal.finished()
        account = _Account(plan["source"], ledger, None)
        for number, entry in enumerate(entries):
            account.expect(number)
            account.enter(number, entry)
        return _written(journal, plan, entries, records)


class _Tasks:
    """Tasks, counted and hashed as they are dealt."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self.num = 0
        self._tasks = tasks
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Hash of the records so far."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Task]:
        for task in self._tasks:
            self.num += 1
            self._hash.update(task.digest.encode())
            yield task


class _Account:
    """Enters what tasks have made into the ledger in the order of their numbers, in whatever order they end."""

    def __init__(self, source: str, ledger: Ledger, on_progress: Callable[[int], None] | None) -> None:
        self.shards: list[ShardInfo] = []
        self._source = source
        self._ledger = ledger
        self._on_progress = on_progress
        self._expected: deque[int] = deque()
        self._entries: dict[int, TaskEntry] = {}
        self._num_done = 0

    def expect(self, number: int) -> None:
        self._expected.append(number)

    def enter(self, number: int, entry: TaskEntry | None) -> None:
        assert entry is not None
        self._num_done += entry.num_records
        self._entries[number] = entry
        while self._expected and self._expected[0] in self._entries:
            first = self._entries.pop(self._expected.popleft())
            self.shards += first.shards
            self._ledger.add_seen(first.num_records)
            for lost in first.lost:
                self._ledger.add(Skipped(self._source, lost.key, lost.reason))

    def show(self, num_in_hand: int) -> None:
        """Tell how many records are done, of finished tasks and of those in hand."""
        if self._on_progress is not None:
            self._on_progress(self._num_done + num_in_hand)


def _unfinished(tasks: Iterator[Task], journal: Journal, account: _Account, media_root: str) -> Iterator[Task]:
    """Those tasks that the journal has not; the others enter the account at once."""
    for task in tasks:
        account.expect(task.number)
        entry = journal.entry(task.number, task.digest, media_root)
        if entry is None:
            yield task
        else:
            account.enter(task.number, entry)


def _check(media_root: Path, *, max_samples: int, max_bytes: int, part: int, num_parts: int) -> None:
    if not media_root.is_dir():
        raise InputError(f"{media_root}: no such folder; give the folder that the files of the annotations lie in")
    if max_samples < 1 or max_bytes < 1:
        raise InputError(f"max_samples={max_samples}, max_bytes={max_bytes}: both must be at least 1")
    if not 0 <= part < num_parts:
        raise InputError(f"part={part}, num_parts={num_parts}: parts are numbered from 0 to num_parts - 1")


def _unchanged(folder: Path, earlier: Manifest, packing: Manifest, tasks: _Tasks) -> Manifest:
    """The manifest of a finished folder, when the same would be packed again and its shards are there."""
    for _ in tasks:
        pass
    was = {_SOURCES: earlier.sources, **(earlier.packing or {})}
    would_be = {_SOURCES: packing.sources, **(packing.packing or {}), RECORDS: tasks.digest}
    if other := differences(was, would_be):
        other = [name for name in other if name != RECORDS] or other  # which follow from the options
        raise InputError(
            f"{folder}: already holds other shards (with other {', '.join(other)}); choose another folder or set "
            "overwrite=true"
        )
    for shard in earlier.shards:
        if (file_state(folder / shard.name) or [0, -1])[1] != shard.bytes:
            raise InputError(f"{folder / shard.name}: is gone or changed; restore it or set overwrite=true")
    Journal(folder).remove()  # a run may have been killed between its last two steps
    return earlier


def _written(journal: Journal, plan: Mapping[str, Any], entries: Sequence[TaskEntry], records: str) -> Manifest:
    """Write the manifest of what tasks have made."""
    folder = journal.folder
    shards = tuple(shard for entry in entries for shard in entry.shards)
    if not shards:
        raise InputError(f"{folder}: no sample was written; check the annotations and where the media lie")
    sources = tuple(SourceFile(**source) for source in plan[_SOURCES])
    facts = {name: value for name, value in plan.items() if name not in {_NUM_PARTS, _SOURCES}}
    manifest = Manifest(shards, sources, {**facts, RECORDS: records})
    journal.tidy([name for shard in shards for name in (shard.name, shard.index_name)])
    _list_skipped(folder / SKIPPED_NAME, entries)
    replace_file(folder / MANIFEST_NAME, manifest.to_json().encode())
    journal.remove()
    return manifest


def _list_skipped(path: Path, entries: Sequence[TaskEntry]) -> None:
    """Write a line for each record that could not be packed; without any there is no list."""
    lines = [json.dumps({"key": lost.key, "reason": lost.reason}) + "\n" for entry in entries for lost in entry.lost]
    if lines:
        replace_file(path, "".join(lines).encode())
    else:
        path.unlink(missing_ok=True)


def _plan(packing: Manifest, num_parts: int) -> dict[str, Any]:
    """What identifies a packing that is under way, as json."""
    sources = [asdict(source) for source in packing.sources]
    return {_NUM_PARTS: num_parts, _SOURCES: sources, **(packing.packing or {})}

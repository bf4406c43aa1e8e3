"""Worker processes of a packing. One that dies or hangs costs the record it was at, and a new one takes its place.

Workers are forked: a fork starts at once, while a fresh interpreter would load the program with all its frameworks
again, for every worker and every replacement. That is safe as long as the parent has no thread that holds a lock which
a worker needs: workers only read, encode and write files, and never print. What they say comes as json through a pipe,
and where they are stands in a shared number, so nothing that a hostile file makes of a worker is unpickled here.
"""

import json
import mmap
import multiprocessing
import os
import signal
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from typing_extensions import Self

from ivt2.data.packing_plan import Task
from ivt2.data.packing_task import TaskPacker
from ivt2.errors import InputError

_TICK_S = 0.2
_MAX_DEATHS = 3
_PLACE = struct.Struct("<q")
_MAX_ANSWER_BYTES = 1 << 16
_DEFECT = 1  # exit status of a Python process that ended with a trace


@dataclass
class _Job:
    """A task and what was learnt about it.

    Args:
        task: itself.
        lost: places of the records that ended a worker, each with the reason.
        suspects: places at which a worker died once; a new one tries the last of them before all others.
        deaths: of workers while none of the records was in hand.
    """

    task: Task
    lost: dict[int, str] = field(default_factory=dict)
    suspects: list[int] = field(default_factory=list)
    deaths: int = 0

    def suspect(self) -> int | None:
        """Place of the record to try first."""
        return next((place for place in self.suspects[-1:] if place not in self.lost), None)


class WorkerPool:
    """Processes that pack tasks; leave its ``with`` block to end them.

    Args:
        packer: packs a task; copied into every worker as it is.
        num_processes: how many.
        timeout_s: seconds that one record may take.

    Raises:
        InputError: when no process or no time is allowed.
    """

    def __init__(self, packer: TaskPacker, *, num_processes: int, timeout_s: float) -> None:
        if num_processes < 1 or timeout_s <= 0:
            raise InputError(f"num_processes={num_processes}, timeout_s={timeout_s}: both must be above 0")
        self.packer = packer
        self.num_processes = num_processes
        self.timeout_s = timeout_s
        self._workers: list[_Worker] = []
        self._lifeline = os.pipe()

    def run(self, tasks: Iterator[Task], on_progress: Callable[[int], None]) -> Iterator[int]:
        """Pack tasks.

        Args:
            tasks: taken as workers become free.
            on_progress: called several times a second with the number of records done of the tasks in hand.

        Returns:
            The number of each task when it is finished, in any order.

        Raises:
            InputError: when shards cannot be written.
            RuntimeError: when a worker fails by a defect of the program.
        """
        waiting: deque[_Job] = deque()
        more = True
        while True:
            self._assign(waiting)  # before more are dealt, during which a worker would wait
            while more and len(waiting) < self.num_processes:
                task = next(tasks, None)
                more = task is not None
                waiting.extend([] if task is None else [_Job(task)])
            self._assign(waiting)
            busy = [worker for worker in self._workers if worker.job is not None]
            if not busy:
                return
            wait([source for worker in busy for source in (worker.link, worker.process.sentinel)], _TICK_S)
            for worker in busy:
                yield from self._attend(worker, waiting)
            on_progress(sum(worker.num_done for worker in self._workers))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()
        for end in self._lifeline:
            os.close(end)

    def _assign(self, waiting: "deque[_Job]") -> None:
        idle = [worker for worker in self._workers if worker.job is None]
        while waiting and (idle or len(self._workers) < self.num_processes):
            if not idle:
                self._workers.append(_Worker(self.packer, self._lifeline))
                idle = [self._workers[-1]]
            idle.pop().begin(waiting.popleft())

    def _attend(self, worker: "_Worker", waiting: "deque[_Job]") -> Iterator[int]:
        """See what a worker has done: yield the number of its task when it is finished, replace it when it is dead."""
        job = worker.job
        assert job is not None
        answer = worker.answer()
        if answer is not None:
            if "error" in answer:
                raise InputError(answer["error"])
            worker.job = None
            yield job.task.number
            return
        place, late = worker.place, worker.seconds_at_place() > self.timeout_s
        if worker.process.is_alive() and not (late and place < job.task.num_records):
            return
        status = worker.end()
        self._workers.remove(worker)
        if status == _DEFECT:
            raise RuntimeError(f"a worker failed at record {place} of task {job.task.number}; its trace is above")
        _learn(job, place, late=late)
        if job.deaths == _MAX_DEATHS:
            raise InputError(
                f"{self.packer.folder}: workers end before they can work (exit status {status}); look for what ended "
                "them, such as too little memory, and run the same command again"
            )
        waiting.appendleft(job)


def _learn(job: _Job, place: int, *, late: bool) -> None:
    """Take down at which record a worker died."""
    if not 0 <= place < job.task.num_records:
        job.deaths += 1
    elif late or place in job.suspects:
        job.lost[place] = "decoder_timeout" if late else "decoder_crashed"
    else:  # an earlier record may have done the harm, or someone from outside
        job.suspects.append(place)


class _Worker:
    """One process and the way to it."""

    def __init__(self, packer: TaskPacker, lifeline: tuple[int, int]) -> None:
        self.link, there = multiprocessing.Pipe()
        self.job: _Job | None = None
        self._shared = mmap.mmap(-1, _PLACE.size)
        self._since = (-1, time.monotonic())
        arguments = (packer, there, self._shared, lifeline)
        self.process = multiprocessing.get_context("fork").Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        there.close()

    @property
    def place(self) -> int:
        """Place of the record in hand."""
        place: int = _PLACE.unpack_from(self._shared)[0]
        return place

    @property
    def num_done(self) -> int:
        """Records of the task in hand that are done."""
        return 0 if self.job is None else max(self.place, 0)

    def begin(self, job: _Job) -> None:
        """Give it a task."""
        self.job = job
        _PLACE.pack_into(self._shared, 0, -1)
        self._since = (-1, time.monotonic())
        order = {"number": job.task.number, "digest": job.task.digest, "suspect": job.suspect()}
        try:
            self.link.send_bytes(json.dumps({**order, "lost": [*job.lost.items()]}).encode())
            self.link.send_bytes(job.task.text)
        except OSError:  # it has died and will be found dead
            return

    def answer(self) -> dict[str, Any] | None:
        """What it says, if anything."""
        try:
            return dict(json.loads(self.link.recv_bytes(_MAX_ANSWER_BYTES))) if self.link.poll() else None
        except (EOFError, OSError, ValueError, TypeError):
            self.process.join()
            return None

    def seconds_at_place(self) -> float:
        """For how long it has been seen at the same record."""
        place, since = self._since
        if place != self.place:
            self._since = (self.place, time.monotonic())
            return 0.0
        return time.monotonic() - since

    def end(self) -> int | None:
        """End the process; return its exit status."""
        self.process.kill()
        self.process.join()
        self.link.close()
        status = self.process.exitcode
        self.process.close()
        return status


def _serve(packer: TaskPacker, link: Connection, shared: mmap.mmap, lifeline: tuple[int, int]) -> None:
    """Be a worker."""
    sys.stderr = sys.__stderr__  # a progress bar may have put itself in its place
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(lifeline[1])
    threading.Thread(target=_end_with_parent, args=(lifeline[0],), daemon=True).start()

    def at(place: int) -> None:
        _PLACE.pack_into(shared, 0, place)

    while True:
        order, text = json.loads(link.recv_bytes()), link.recv_bytes()
        lost = {int(place): str(reason) for place, reason in order["lost"]}
        try:
            if order["suspect"] is not None:
                at(order["suspect"])
                packer.probe(text, order["suspect"])
            packer.pack(order["number"], order["digest"], text, lost=lost, at=at)
        except InputError as error:
            link.send_bytes(json.dumps({"error": str(error)}).encode())
        else:
            link.send_bytes(b"{}")


def _end_with_parent(lifeline: int) -> None:
    """Wait for the end of the parent, however it comes: nobody else holds the other end of the pipe."""
    os.read(lifeline, 1)
    os._exit(1)

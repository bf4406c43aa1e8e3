"""The same work on many tasks in several processes, its results in the order of the tasks.

The processes are forked, so the work may hold what is open here, such as a shard set. They end with whoever reads
their results, however that one ends, and take their own decoder processes with them.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from threading import Thread
from types import FrameType
from typing import Generic, NoReturn, TypeVar

from ivt2.errors import InputError

_MAX_READERS = 4
"""Reading waits for the disk beyond that, and the machine stays usable."""

_SIGNALLED = 128
"""Added to a signal's number, as shells do, in the exit status of a process that it ended in order."""

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def num_cores() -> int:
    """Return how many processes can run here at the same time."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def num_readers(asked: int | None) -> int:
    """Return how many processes go through shards: as many as asked for, or one for each core, at most 4."""
    return min(num_cores(), _MAX_READERS) if asked is None else asked


def in_order(
    work: Callable[[_Task], _Result], tasks: Sequence[_Task], *, num_processes: int
) -> Generator[_Result, None, None]:
    """Do the same work on every task; processes go on while their results wait, but not far.

    Args:
        work: done in another process, or in this one if one is enough; what it returns is pickled.
        tasks: the i-th one goes to process i modulo ``num_processes``.
        num_processes: at most; not more than there are tasks.

    Returns:
        The results, in the order of the tasks; close the iterator to end the processes before the last one.

    Raises:
        InputError: raised by the work, or one of the processes was killed.
        RuntimeError: the work failed otherwise; its trace is on standard error.
    """
    if num_processes < 1:
        raise InputError(f"num_processes={num_processes}: must be at least 1")
    num_processes = min(num_processes, len(tasks))
    if num_processes <= 1:
        yield from map(work, tasks)
        return
    with ExitStack() as stack:
        workers = []
        for first in range(num_processes):
            workers.append(_Worker(work, tasks[first::num_processes]))
            stack.callback(workers[-1].end)
        for number in range(len(tasks)):
            yield workers[number % num_processes].result()
        for worker in workers:
            worker.process.join()


class _Worker(Generic[_Task, _Result]):
    """A process and the way back from it."""

    def __init__(self, work: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> None:
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(work, tasks, sender), daemon=True)
        self.process.start()
        sender.close()  # or its end would not be seen here

    def result(self) -> _Result:
        """Return the next result."""
        try:
            result: _Result | InputError = self._receiver.recv()
        except EOFError:
            self.process.join()
            status = self.process.exitcode or 0
            number = -status if status < 0 else status - _SIGNALLED
            if number <= 0:
                raise RuntimeError("a process of this command failed; see its trace above") from None
            name = signal.Signals(number).name
            raise InputError(
                f"a process of this command ended with {name}; free memory or lower num_processes"
            ) from None
        if isinstance(result, InputError):
            raise result
        return result

    def end(self) -> None:
        """End the process where it is, if it still runs."""
        self.process.terminate()
        self.process.join()
        self._receiver.close()


def _serve(work: Callable[[_Task], _Result], tasks: Sequence[_Task], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that reads the results decides
    signal.signal(signal.SIGTERM, _leave)
    Thread(target=_follow_parent, daemon=True).start()
    with suppress(BrokenPipeError):
        for task in tasks:
            try:
                sender.send(work(task))
            except InputError as error:
                sender.send(error)
                return


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """End in order, so that a decoder process is ended as well."""
    raise SystemExit(_SIGNALLED + number)


def _follow_parent() -> None:
    """Wait until the parent has gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)

"""Measuring by turns: what two ways to do the same cost, in wall-clock time and in CPU time of all their processes."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import psutil

from ivt2.errors import InputError

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Barrier

Clock = Literal["wall", "cpu"]

_TURN_S = 600.0  # a turn that takes longer hangs


class Cost(NamedTuple):
    """What one turn took."""

    wall_s: float
    cpu_s: float
    """Of this process and of all that descend from it, those that have ended included."""

    def on(self, clock: Clock) -> float:
        """Seconds by one of the two clocks."""
        return self.wall_s if clock == "wall" else self.cpu_s


class Quartiles(NamedTuple):
    """Median and quartiles of the turns of a run."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: "list[float]") -> "Quartiles":
        """Quartiles of some values, interpolated."""
        return cls(*map(float, np.percentile(values, (25, 50, 75))))


@dataclass(frozen=True)
class Comparison:
    """Costs of two sides, turn by turn: the pairs were measured one right after the other."""

    a: tuple[Cost, ...]
    b: tuple[Cost, ...]

    def speed(self, clock: Clock) -> Quartiles:
        """How many times as fast as B side A is."""
        return Quartiles.of([b.on(clock) / a.on(clock) for a, b in zip(self.a, self.b, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of a suite's table.

    Args:
        what: what was measured.
        value: the figure, with its scatter.
        unit: ``x`` for a ratio of two speeds, ``s`` for seconds, or a count's total.
        floor: what it should reach at least; at most where ``aim`` is smaller. None where nothing is asked.
        aim: what it is hoped to reach.
        details: further values, by name with unit.
    """

    what: str
    value: Quartiles
    unit: str
    floor: float | None = None
    aim: float | None = None
    details: Mapping[str, float]

    @property
    def reached(self) -> str:
        """``aim``, ``floor``, ``no``, or nothing where nothing is asked."""
        if self.floor is None or self.aim is None:
            return ""
        sign = -1 if self.aim < self.floor else 1
        if sign * self.value.median >= sign * self.aim:
            return "aim"
        return "floor" if sign * self.value.median >= sign * self.floor else "no"


class Stopwatch:
    """Runs from when it is made; its own reading of other processes' times is in no cost."""

    def __init__(self) -> None:
        self._others_s = _others_cpu_s()
        self._own_s = time.process_time()
        self._start_s = time.perf_counter()

    def read(self) -> Cost:
        """What was spent so far."""
        wall_s = time.perf_counter() - self._start_s
        own_s = time.process_time() - self._own_s
        return Cost(wall_s, own_s + _others_cpu_s() - self._others_s)


def timed(work: Callable[[], object]) -> Cost:
    """Cost of calling a function once."""
    watch = Stopwatch()
    work()
    return watch.read()


def interleaved(a: Callable[[], Cost], b: Callable[[], Cost], *, pairs: int, tick: Callable[[], object]) -> Comparison:
    """Measure two sides by turns, so that whatever else the machine does hits both alike.

    Args:
        a: takes one turn and says what its measured part cost.
        b: the same; every second pair begins with it.
        pairs: turns of each side.
        tick: called after every turn.

    Raises:
        InputError: when there are no pairs.
    """
    if pairs < 1:
        raise InputError(f"pairs={pairs}: must be at least 1")
    costs: tuple[list[Cost], list[Cost]] = ([], [])
    for number in range(pairs):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            costs[side].append((a, b)[side]())
            tick()
    return Comparison(tuple(costs[0]), tuple(costs[1]))


def in_processes(make: Callable[[], Callable[[int], object]], num_items: int, *, num_processes: int) -> Cost:
    """Cost of work that forked processes share out; their start and the first item of each do not count.

    Args:
        make: called in each process, gives the function that works on an item by its number.
        num_items: how many there are; who is free takes the next, so that all end at almost the same time.
        num_processes: how many share them.

    Raises:
        RuntimeError: when one of them fails; it has printed why.
    """
    context = multiprocessing.get_context("fork")
    barrier, following = context.Barrier(num_processes + 1), context.Value("q", 0)
    processes = [
        context.Process(target=_work, args=(make, num_items, barrier, following), daemon=False)
        for _ in range(num_processes)
    ]
    for process in processes:
        process.start()
    try:
        barrier.wait(_TURN_S)  # all have warmed up
        watch = Stopwatch()
        barrier.wait(_TURN_S)  # only now may they start: who is late here would miss what they do
        barrier.wait(_TURN_S)
        return watch.read()
    except BrokenBarrierError as error:
        raise RuntimeError("a process that was measured has failed") from error
    except BaseException:
        barrier.abort()
        raise
    finally:
        for process in processes:
            process.join()


def speed_figure(
    what: str,
    comparison: Comparison,
    *,
    sides: tuple[str, str],
    items: int,
    clock: Clock,
    floor: float | None = None,
    aim: float | None = None,
) -> Figure:
    """How many times as fast side A is, with the time that both need for an item.

    Args:
        what: was compared.
        comparison: of turns of ``items`` items each.
        sides: names of A and B.
        items: of a turn.
        clock: the one that the figure is judged by.
        floor: of the figure.
        aim: of the figure.
    """
    details: dict[str, float] = {}
    for name, costs in zip(sides, (comparison.a, comparison.b), strict=True):
        details[f"{name} ms"] = 1e3 * Quartiles.of([cost.wall_s for cost in costs]).median / items
        details[f"{name} CPU ms"] = 1e3 * Quartiles.of([cost.cpu_s for cost in costs]).median / items
    other: Clock = "cpu" if clock == "wall" else "wall"
    details["ratio by CPU" if clock == "wall" else "ratio by wall"] = comparison.speed(other).median
    return Figure(what=what, value=comparison.speed(clock), unit="x", floor=floor, aim=aim, details=details)


def _work(
    make: Callable[[], Callable[[int], object]], num_items: int, barrier: "Barrier", following: "Synchronized[int]"
) -> None:
    import torch

    torch.set_num_threads(1)  # as in a loader's worker
    with ExitStack() as stack:
        stack.callback(barrier.abort)
        work = make()
        work(0)
        barrier.wait(_TURN_S)  # warm
        barrier.wait(_TURN_S)  # the clock runs
        while (number := _taken(following)) < num_items:
            work(number)
        barrier.wait(_TURN_S)
        stack.pop_all()


def _taken(following: "Synchronized[int]") -> int:
    """The number of the next item, which nobody else gets."""
    with following.get_lock():
        number = following.value
        following.value += 1
    return number


def _others_cpu_s() -> float:
    """CPU time of all descendants: of the living ones, and of those that were waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total_s = ended.ru_utime + ended.ru_stime
    for process in psutil.Process().children(recursive=True):
        try:
            total_s += sum(process.cpu_times()[:4])  # user, system, and those of its own ended children
        except psutil.NoSuchProcess:  # its parent has waited for it in between and counts it now
            continue
    return total_s

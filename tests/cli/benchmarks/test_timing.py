"""Exact: the clocks count what they should, turns alternate, figures say what they reached."""

import multiprocessing
import time

import pytest

from ivt2.cli.benchmarks import timing
from ivt2.cli.benchmarks.timing import (
    Comparison,
    Cost,
    Figure,
    Quartiles,
    Stopwatch,
    in_processes,
    interleaved,
    speed_figure,
)
from ivt2.errors import InputError


def burn(cpu_s):
    start = time.process_time()
    while time.process_time() - start < cpu_s:
        pass


def burn_and_wait(cpu_s, done, go):
    burn(cpu_s)
    done.set()
    go.wait()


def test_cpu_time_counts_processes_that_live_and_those_that_have_ended():
    context = multiprocessing.get_context("fork")
    done, go = context.Event(), context.Event()
    watch = Stopwatch()
    living = context.Process(target=burn_and_wait, args=(0.1, done, go))
    living.start()
    done.wait()
    first = watch.read()
    go.set()
    living.join()
    again = watch.read()
    assert 0.08 <= first.cpu_s < 0.3
    assert first.cpu_s - 0.02 <= again.cpu_s < first.cpu_s + 0.1
    assert again.wall_s > first.wall_s >= 0.09
    watch = Stopwatch()
    time.sleep(0.05)
    idle = watch.read()
    assert idle.cpu_s < 0.03
    assert idle.wall_s >= 0.05


def test_turns_alternate_and_each_pair_gives_a_ratio():
    order, costs = (
        [],
        {"a": iter([Cost(1, 1), Cost(2, 4), Cost(1, 8)]), "b": iter([Cost(2, 1), Cost(8, 1), Cost(3, 1)])},
    )

    def turn(side):
        order.append(side)
        return next(costs[side])

    comparison = interleaved(lambda: turn("a"), lambda: turn("b"), pairs=3, tick=lambda: order.append("."))
    assert "".join(order) == "a.b.b.a.a.b."
    assert comparison.speed("wall") == Quartiles(2.5, 3.0, 3.5)  # of 2, 4, 3
    assert comparison.speed("cpu").median == 0.25
    with pytest.raises(InputError, match="pairs=0: must be at least 1"):
        interleaved(lambda: turn("a"), lambda: turn("b"), pairs=0, tick=lambda: None)


@pytest.mark.parametrize(
    ("value", "floor", "aim", "expected"),
    [
        (0.96, 0.85, 0.95, "aim"),
        (0.86, 0.85, 0.95, "floor"),
        (0.84, 0.85, 0.95, "no"),
        (1.9, 20.0, 2.0, "aim"),
        (19.0, 20.0, 2.0, "floor"),
        (21.0, 20.0, 2.0, "no"),
        (50.0, 50, 50, "aim"),
        (49.0, 50, 50, "no"),
        (1.0, None, None, ""),
    ],
)
def test_a_figure_says_what_it_reached_whether_more_is_better_or_less(value, floor, aim, expected):
    figure = Figure(what="x", value=Quartiles(0, value, 99), unit="x", floor=floor, aim=aim, details={})
    assert figure.reached == expected


def test_time_for_an_item_is_that_of_its_turn_shared_out():
    comparison = Comparison((Cost(1.0, 2.0),), (Cost(4.0, 1.0),))
    figure = speed_figure("x", comparison, sides=("new", "old"), items=10, clock="wall")
    assert figure.value.median == 4
    assert figure.details == {
        "new ms": 100,
        "new CPU ms": 200,
        "old ms": 400,
        "old CPU ms": 100,
        "ratio by CPU": 0.5,
    }


def test_processes_share_out_all_items_and_their_start_does_not_count(tmp_path):
    def make():
        time.sleep(0.2)
        burn(0.1)

        def work(number):
            burn(0.02)
            with (tmp_path / "items").open("a") as file:
                file.write(f"{number}\n")

        return work

    cost = in_processes(make, 6, num_processes=2)
    items = sorted(map(int, (tmp_path / "items").read_text().split()))
    assert items == [0, 0, *range(6)], "two of them to warm up"
    assert 0.07 <= cost.cpu_s < 0.22


def test_processes_do_not_start_before_the_clock_does(monkeypatch):
    class LateStopwatch(Stopwatch):
        def __init__(self):
            time.sleep(0.3)
            super().__init__()

    monkeypatch.setattr(timing, "Stopwatch", LateStopwatch)
    cost = in_processes(lambda: lambda number: burn(0.02), 6, num_processes=2)
    assert 0.07 <= cost.cpu_s < 0.22


def test_a_process_that_fails_ends_the_measurement(capfd):
    def make():
        raise ValueError("no clip")

    with pytest.raises(RuntimeError, match="a process that was measured has failed"):
        in_processes(make, 1, num_processes=2)
    assert "no clip" in capfd.readouterr().err

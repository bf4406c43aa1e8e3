"""Exact: what comes back from several processes, and that none of them outlives its reader."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from ivt2.data import workers
from ivt2.data.workers import in_order, num_readers
from ivt2.errors import InputError

SCRIPT = """
import signal, sys, time
from io import BytesIO
from PIL import Image
from ivt2.data.containers import Limits
from ivt2.data.isolation import DecoderProcess
from ivt2.data.workers import in_order

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
process = DecoderProcess()

def work(task):
    if task >= 2:
        time.sleep(60)
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return process.read_image(file.getvalue(), Limits()).shape

for shape in in_order(work, range(9), num_processes=2):
    sys.stdout.write(f"{shape}\\n")
    sys.stdout.flush()
"""


def children():
    """Processes of this one; other tests may have left some that have nothing to do with these."""
    return {process.pid for process in psutil.Process().children()}


@pytest.mark.parametrize("num_processes", [1, 2, 5, 40])
def test_results_come_in_the_order_of_the_tasks(num_processes):
    numbers = range(11)

    def work(number):
        time.sleep(0.01 * (number % 3))
        return number**2, os.getpid()

    results = list(in_order(work, numbers, num_processes=num_processes))
    assert [square for square, _ in results] == [number**2 for number in numbers]
    assert len({pid for _, pid in results}) == min(num_processes, 11)
    assert (os.getpid() in {pid for _, pid in results}) == (num_processes == 1)


@pytest.mark.parametrize(("cores", "asked", "expected"), [(2, None, 2), (64, None, 4), (2, 16, 16), (64, 0, 0)])
def test_without_a_number_a_process_reads_for_each_core_but_not_for_many(monkeypatch, cores, asked, expected):
    monkeypatch.setattr(workers, "num_cores", lambda: cores)
    assert num_readers(asked) == expected


def fail(error):
    def work(number):
        if number == 3:
            raise error
        return number

    return work


def test_a_mistake_of_the_user_keeps_its_line():
    before = children()
    results = in_order(fail(InputError("that: is wrong; do this")), range(9), num_processes=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="that: is wrong; do this"):
        next(results)
    assert children() == before


def test_a_defect_leaves_its_trace(capfd):
    with pytest.raises(RuntimeError, match="see its trace above"):
        list(in_order(fail(KeyError("what is missing")), range(9), num_processes=2))
    assert "KeyError: 'what is missing'" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_is_told(number):
    before = children()

    def work(task):
        if task == 3:
            os.kill(os.getpid(), number)
            time.sleep(60)
        return task

    with pytest.raises(InputError, match=f"ended with {number.name}; free memory or lower num_processes"):
        list(in_order(work, range(9), num_processes=2))
    assert children() == before


def test_whoever_stops_reading_stops_the_work():
    before = children()
    with closing(in_order(lambda number: time.sleep(60 * number) or number, range(9), num_processes=3)) as results:
        assert next(results) == 0
        assert len(children() - before) == 3
    assert children() == before


def test_no_process_is_none():
    with pytest.raises(InputError, match="num_processes=0: must be at least 1"):
        list(in_order(len, ["a"], num_processes=0))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_is_ended_leaves_no_process_behind(number):
    """Each of its two processes has a decoder process, and sleeps in its second task."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert [parent.stdout.readline() for _ in range(2)] == [b"(8, 8, 3)\n"] * 2
        descendants = psutil.Process(parent.pid).children(recursive=True)
        assert len(descendants) == 4
        parent.send_signal(number)
        assert parent.wait(30) == -number
    _, alive = psutil.wait_procs(descendants, timeout=10)
    assert not alive

"""Programs of the warm Python are started, steered and ended like those of a fresh one."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.programs import warm_python

SAY = """
import gc, json, os, sys, threading
from lightning.fabric.utilities.rank_zero import rank_zero_only
print(json.dumps({
    "argv": sys.argv, "name": __name__, "first": sys.path[0], "folder": os.getcwd(), "given": os.environ.get("GIVEN"),
    "rank": rank_zero_only.rank, "ours": "ivt2" in sys.modules, "gc": gc.isenabled(), "path": "/found" in sys.path,
    "main": sys.modules["__main__"].__dict__ is globals(), "threads": threading.active_count(), "asked": input(),
}))
sys.exit(7)
"""
WAIT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("up", flush=True)
time.sleep(60)
"""


def start(python, *arguments, folder=None, **environment):
    given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([python, *arguments], env=given, cwd=folder, text=True, **streams)


def say(python, *arguments, **options):
    with start(python, *arguments, **options) as process:
        out, err = process.communicate("yes\n")
    assert process.returncode == 7, err
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
def test_a_program_finds_what_a_fresh_interpreter_gives_it(kind, tmp_path):
    (tmp_path / "saying.py").write_text(SAY)
    arguments = {"-c": ["-c", SAY], "-m": ["-u", "-m", "saying"], "script": ["saying.py"]}[kind]
    options = {"folder": tmp_path, "GIVEN": "it", "LOCAL_RANK": "1", "PYTHONPATH": "/found"}
    found = say(warm_python(), *arguments, "a", "b=c", **options)
    assert found == {
        "argv": [{"-c": "-c", "-m": str(tmp_path / "saying.py"), "script": "saying.py"}[kind], "a", "b=c"],
        "name": "__main__",
        "first": "" if kind == "-c" else str(tmp_path),
        "folder": str(tmp_path),
        "given": "it",
        "rank": 1,
        "ours": False,
        "gc": True,
        "path": True,
        "main": True,
        "threads": 1,
        "asked": "yes",
    }


def printed(text, **environment):
    with start(warm_python(), "-c", text, **environment) as process:
        return process.communicate()[0]


@pytest.mark.slow
def test_programs_start_warm_and_draw_numbers_of_their_own():
    assert printed("import sys; print('lightning' in sys.modules)") == "True\n"
    assert printed("import sys; print('lightning' in sys.modules)", OMP_NUM_THREADS="2") == "False\n"
    for drawn in ("random; print(random.random())", "numpy.random; print(numpy.random.rand())"):
        assert printed(f"import {drawn}") != printed(f"import {drawn}")


@pytest.mark.slow
def test_ranks_differ_in_the_order_of_sets():
    orders = [printed("print(hash('a'))", LOCAL_RANK=rank) for rank in "0123"]
    assert orders[0] == orders[2] != orders[1] == orders[3]
    assert orders[1] == printed("print(hash('a'))", PYTHONHASHSEED="2")


@pytest.mark.slow
@pytest.mark.parametrize(("text", "code"), [("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_a_program_that_fails_is_seen_to_fail(text, code):
    with start(warm_python(), "-c", text) as process:
        err = process.communicate()[1]
    assert process.returncode == code
    assert ("ZeroDivisionError" in err) == (code == 1)


@pytest.mark.slow
def test_signals_reach_the_program_and_a_kill_ends_it():
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        with start(warm_python(), "-c", WAIT) as process:
            assert process.stdout.readline() == "up\n"
            process.send_signal(number)
            process.communicate(timeout=20)  # ends when the program itself has closed its streams
        assert process.returncode == code


@pytest.mark.slow
def test_a_program_with_streams_of_its_own_gets_them():
    read, write = os.pipe()
    text = f"import os, sys; os.write({write}, b'given'); print('lightning' in sys.modules)"
    command = [warm_python(), "-c", text]
    shown = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, pass_fds=[write], capture_output=True, check=True
    )
    assert os.read(read, 5) == b"given"
    assert shown.stdout == b"False\n"
    os.close(read)
    os.close(write)
    assert sys.executable != command[0]

"""A Python whose programs start with Lightning and MLflow imported, for the tests that start programs.

Importing them costs eight seconds of CPU time, as much as all else that a test's program does. Here a server imports
them once, and every program is a fork of it. What stands for the interpreter is a small script, ``warm_client.py``: it
hands its arguments, environment, folder and standard streams to the server, passes signals on, and ends as the program
ends, so that tests start it, wait for it and kill it as they would any program.

    python tests/warm.py socket

A program that is given more than the three standard streams, or another number of threads, starts in the usual way.
Nothing of this package is imported before the fork.
"""

import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import struct
import sys
import threading
import types
from contextlib import suppress
from pathlib import Path

LENGTH = struct.Struct("<I")
MODULES = (
    "lightning.pytorch",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "torch.distributed.fsdp",
    "torch.distributed.run",
)


def serve(listener):
    """Return a connection and the program that it asks for, in a process for each; ends when stdin does."""
    children = set()
    while listener in select.select([listener, 0], [], [])[0]:
        connection, _ = listener.accept()
        child = os.fork()
        if child == 0:
            return attend(connection)
        connection.close()
        children = {child, *(each for each in children if os.waitpid(each, os.WNOHANG)[0] == 0)}
    for each in children:
        os.waitpid(each, 0)
    sys.exit()


def attend(connection):
    """Fork again: the program on one side, which returns; on the other what watches over it, which does not."""
    head, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    with connection.makefile("rb") as rest:
        program = json.loads(rest.read(LENGTH.unpack(head)[0]))
    child = os.fork()
    if child == 0:
        connection.close()
        return streams, program
    for stream in streams:
        os.close(stream)
    threading.Thread(target=forward, args=(connection, child), daemon=True).start()
    _, status = os.waitpid(child, 0)
    with suppress(BrokenPipeError):
        connection.send(LENGTH.pack(status))
    os._exit(0)


def forward(connection, child):
    """Pass on signals; a client that is gone was killed, and so is the program."""
    with suppress(ProcessLookupError):
        while signals := connection.recv(1):
            os.kill(child, signals[0])
        os.kill(child, signal.SIGKILL)


def become(streams, program):
    """Take over what a fresh interpreter finds when it starts."""
    import numpy as np
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(program["environment"])
    os.chdir(program["folder"])
    sys.executable = program["executable"]
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path and path not in sys.path]
    random.seed()
    np.random.seed()
    rank_zero_only.rank = _get_rank() or 0  # Lightning reads it when it is imported


def run(arguments):
    """``[-u] -m module ...``, ``[-u] -c text ...`` or ``[-u] script ...`` as the main module."""
    if arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        arguments = arguments[1:]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], str(Path.cwd())
        runpy._run_module_as_main(arguments[1])
    elif arguments[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
        main.__file__ = arguments[0]
        exec(compile(Path(arguments[0]).read_bytes(), arguments[0], "exec"), main.__dict__)


def start():
    """Import, then serve; returns in each program."""
    gc.disable()  # or collecting would take a third of the time, and pages would be copied when a program ends
    for name in MODULES:
        __import__(name)
    gc.freeze()
    gc.enable()
    assert threading.active_count() == 1, "a fork would lose threads"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(16)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        return serve(listener)


if __name__ == "__main__":
    streams, program = start()
    become(streams, program)
    run(program["arguments"])

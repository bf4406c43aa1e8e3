"""Commands run in this process or in a warm one: importing Lightning once for many runs saves seconds each."""

import atexit
import functools
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

_SERVER, _CLIENT = (Path(__file__).with_name(name) for name in ("warm.py", "warm_client.py"))


def run_main(main: Callable[[], object], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Call a command's ``main`` with a command line; return its exit status. Logging is left as it was."""
    handlers = logging.getLogger().handlers[:]
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        main()
    except SystemExit as error:
        return error.code or 0
    finally:
        logging.getLogger().handlers[:] = handlers
    return 0


@functools.cache
def warm_python() -> str:
    """A Python to start programs with whose heavy imports are done, see ``warm.py``; its servers end with this process.

    The programs must be given ``OMP_NUM_THREADS=1``.
    """
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", str(_CLIENT), str(folder)])} "$0" "$@"\n')
    python.chmod(0o755)
    servers = [
        subprocess.Popen(
            [sys.executable, _SERVER, folder / seed],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for seed in ("1", "2")
    ]

    def end() -> None:
        for server in servers:
            server.communicate()
        shutil.rmtree(folder)

    atexit.register(end)
    assert all(server.stdout.readline() for server in servers)
    return str(python)

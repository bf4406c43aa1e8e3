"""Stands for the interpreter of a program that a server of ``warm.py`` runs: sockets' folder, own path, arguments.

The server is that of the program's ``PYTHONHASHSEED``, 1 or 2; without it, even ranks have one and odd ranks the other,
so that what depends on the order of a set differs between them, as it does between fresh interpreters.
"""

import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path

LENGTH = struct.Struct("<I")
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def server(folder):
    """Socket of the server, or None where the program has to start in the usual way."""
    opened = [path for path in list(Path("/proc/self/fd").iterdir()) if int(path.name) > 2 and path.exists()]
    rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or 0)
    path = Path(folder, os.environ.get("PYTHONHASHSEED") or str(1 + rank % 2))
    plain = not opened and os.environ.get("OMP_NUM_THREADS") == "1"
    return str(path) if plain and path.exists() else None


def main():
    folder, executable, *arguments = sys.argv[1:]
    path = server(folder)
    if path is None:
        os.execv(sys.executable, [sys.executable, *arguments])
    program = {
        "arguments": arguments,
        "executable": executable,
        "folder": str(Path.cwd()),
        "environment": {**os.environ},
    }
    text = json.dumps(program).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [LENGTH.pack(len(text))], [0, 1, 2])
        connection.sendall(text)
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
        answer = connection.recv(LENGTH.size)
    if not answer:
        sys.exit(f"{path}: the server is gone")
    code = os.waitstatus_to_exitcode(LENGTH.unpack(answer)[0])
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code in PASSED_ON else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()

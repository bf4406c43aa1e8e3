"""Commands run in this process: importing Lightning once for many runs saves seconds each."""

import logging
import sys
from collections.abc import Callable

import pytest


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

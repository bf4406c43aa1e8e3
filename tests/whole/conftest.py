import logging
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(monkeypatch, tmp_path, capsys):
    """Run train.py in this process, in a folder of its own; returns (exit status, stdout, stderr)."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    import train

    handlers = logging.getLogger().handlers[:]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
        code = 0
        try:
            train.main()
        except SystemExit as error:
            code = error.code or 0
        finally:
            logging.getLogger().handlers[:] = handlers
        return code, *capsys.readouterr()

    return run

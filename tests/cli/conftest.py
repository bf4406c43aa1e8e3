import logging
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).parent / "probe"


@pytest.fixture
def probe(monkeypatch, tmp_path, capsys):
    """Run the probe command in this process; returns (exit status, stdout, stderr)."""
    sys.path.insert(0, str(PROBE))
    import probe as module

    monkeypatch.chdir(tmp_path)
    handlers = logging.getLogger().handlers[:]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(PROBE / "probe.py"), *arguments])
        code = 0
        try:
            module.main()
        except SystemExit as error:
            code = error.code or 0
        finally:
            logging.getLogger().handlers[:] = handlers
        return code, *capsys.readouterr()

    yield run
    sys.path.remove(str(PROBE))

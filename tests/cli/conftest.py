import sys
from pathlib import Path

import pytest

from tests.programs import run_main

PROBE = Path(__file__).parent / "probe"


@pytest.fixture
def probe(monkeypatch, tmp_path, capsys):
    """Run the probe command in this process; returns (exit status, stdout, stderr)."""
    sys.path.insert(0, str(PROBE))
    import probe as module

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = run_main(module.main, [str(PROBE / "probe.py"), *arguments], monkeypatch)
        return code, *capsys.readouterr()

    yield run
    sys.path.remove(str(PROBE))

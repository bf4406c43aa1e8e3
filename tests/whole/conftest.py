from pathlib import Path

import pytest

from tests.programs import run_main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(monkeypatch, tmp_path, capsys):
    """Run train.py in this process, in a folder of its own; returns (exit status, stdout, stderr)."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    import train

    def run(*arguments):
        code = run_main(train.main, [str(ROOT / "train.py"), *arguments], monkeypatch)
        return code, *capsys.readouterr()

    return run

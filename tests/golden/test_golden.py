"""Every recorded case in ``IVT2_GOLDEN_DIR`` against this package.

A case is checked by ``checks/<case>.py`` (``check(case)``); one without such a file is reported as *unknown*,
not as passed.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from tests.golden.case import Case

ROOT = Path(__file__).parents[2]
CHECKS = Path(__file__).parent / "checks"
FOLDER = Path(os.environ.get("IVT2_GOLDEN_DIR", ROOT.parent / "shared" / "golden"))


def _cases():
    files = sorted(FOLDER.glob("*.json")) if FOLDER.is_dir() else []
    if not files:
        reason = f"no recorded cases in {FOLDER}: set IVT2_GOLDEN_DIR"
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(Case(file), id=file.stem) for file in files]


@pytest.mark.parametrize("case", _cases())
def test_recorded_case(case: Case) -> None:
    file = CHECKS / f"{case.name}.py"
    if not file.exists():
        pytest.skip(f"unknown: no check for case {case.name} in this package yet")
    spec = importlib.util.spec_from_file_location(f"golden_{case.name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.check(case)

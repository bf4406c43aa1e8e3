"""What the Makefile promises, with an interpreter that only writes down what it is asked to do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = {"help", "env", "quickstart", "chain", "test", "lint", "smoke", "golden", "dashboard"}

INTERPRETER = f"""#!/bin/sh
echo "$*" >> "$CALLS"
case "$1 $2" in
    "-c "*) exec {sys.executable} "$@" ;;
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    interpreter = tmp_path / "interpreter"
    interpreter.write_text(INTERPRETER)
    interpreter.chmod(0o755)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path


def make(folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "OMP"))}
    line = ["make", *arguments, f"PY={folder}/interpreter"]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def installs(folder):
    file = folder / "calls"
    return file.read_text().count("-m pip install -e .[dev] -c constraints.txt") if file.exists() else 0


def test_make_alone_lists_the_targets(checkout):
    listed = make(checkout).stdout.splitlines()
    assert {line.split()[1] for line in listed} == TARGETS


def test_env_is_built_once_and_again_only_when_what_it_is_built_from_changes(checkout):
    assert make(checkout, "env").returncode == 0
    assert installs(checkout) == 1
    assert "Nothing to be done" in make(checkout, "env").stdout
    (checkout / "constraints.txt").touch()
    assert make(checkout, "env").returncode == 0
    assert installs(checkout) == 1
    (checkout / "constraints.txt").write_text("torch==2.12.0\n")
    assert make(checkout, "env").returncode == 0
    assert installs(checkout) == 2


def test_a_failed_installation_leaves_no_stamp(checkout):
    (checkout / "interpreter").write_text(INTERPRETER.replace("esac", '"-m pip") exit 1 ;; esac'))
    assert make(checkout, "env").returncode != 0
    assert make(checkout, "env").returncode != 0
    assert installs(checkout) == 2


def test_an_interpreter_that_is_too_old_is_named(checkout):
    (checkout / "interpreter").write_text("#!/bin/sh\necho 3.9 is too old >&2\nexit 1\n")
    done = make(checkout, "env")
    assert done.returncode != 0
    assert not (checkout / ".venv").exists()


def test_there_are_never_more_threads_than_cores(checkout):
    (checkout / "show.mk").write_text("include Makefile\nshow:\n\t@echo $$OMP_NUM_THREADS\n")
    shown = make(checkout, "-f", "show.mk", "show").stdout
    assert 1 <= int(shown) <= min(4, os.cpu_count())


def test_smoke_runs_every_tiny_experiment_after_its_teachers(checkout):
    (checkout / "show.mk").write_text("include Makefile\nshow:\n\t@echo $(SMOKE)\n")
    listed = make(checkout, "-f", "show.mk", "show").stdout.split()
    files = {file.stem: file.read_text() for file in (ROOT / "conf" / "experiment").glob("*_tiny.yaml")}
    assert sorted(listed) == sorted(files)
    for place, name in enumerate(listed):
        teachers = re.findall(r"weights: \$\{paths\.output_dir\}/(\w+)", files[name])
        assert set(teachers) <= set(listed[:place])
        assert bool(teachers) == (name in {"stage1_tiny", "distill_tiny", "stage2_from_stage1_tiny"})


def test_the_deciding_check_is_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"

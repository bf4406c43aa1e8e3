import json
import subprocess
import sys
import time

import pytest

from ivt2.cli import door
from ivt2.cli.targets import ALLOWED

ROOT = door.CONF.parent

MISTAKES = {
    "unknown key, near one": (["setps=3"], "setps: no such key; did you mean 'steps'?"),
    "unknown key of a node": (["network.in_feature=3"], "network.in_feature: no such key; did you mean 'in_features'?"),
    "unknown group": (["colur=red"], "colur: no such key; did you mean 'colour'?"),
    "unknown choice": (["colour=bleu"], "colour=bleu: no such colour; did you mean 'blue'?; there are: blue, red"),
    "missing value": (["x=???"], "x: has no value; set it with x=..."),
    "value missing elsewhere": (["name=???"], "needs name, which has no value; set it with name=..."),
    "unset group": (
        ["uses=${solver.lr}"],
        "uses: refers to ${solver.lr}, which is not set; choose one with solver=adamw",
    ),
    "unset key": (["uses=${nothing}"], "uses: refers to ${nothing}, which is not set"),
    "wrong type": (["steps=1.5"], "steps: expected int, got 1.5"),
    "wrong type in a node": (["network.out_features=many"], "network.out_features: expected int, got 'many'"),
    "unknown argument": (["+network.bais=false"], "has no argument 'bais'; did you mean 'bias'?"),
    "argument missing": (["~network.out_features"], "network.out_features: torch.nn.Linear requires this argument"),
    "several at once": (["steps=a", "network.in_features=b"], "steps: expected int, got 'a' | network.in_features:"),
    "not key=value": (["x=[1"], "x=[1: cannot be read"),
    "flag": (["--x", "3"], "unrecognized arguments: --x; values are set as key=value"),
    "group set to null": (["colour=null"], "a group cannot be set to null"),
    "pickled configuration": (["--experimental-rerun", "a.pickle"], "unpickles"),
    "target outside": (["network._target_=os.system"], "network._target_: 'os.system' is not allowed"),
    "positional arguments": (["+network._args_=[1]"], "network: _args_ is not allowed"),
    "raised by the command": (["fail=input"], "clip.mp4: cannot be read; remove it"),
    "environment": (["uses=${oc.env:NO_SUCH_VARIABLE}"], "NO_SUCH_VARIABLE"),
    "folder": (["paths.run_dir=/dev/null/x"], "/dev/null/x: cannot write there"),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_status_2(probe, arguments, expected):
    code, _, err = probe(*arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert expected in err


def test_an_interrupt_is_one_line_and_the_status_of_shells(probe):
    assert probe("fail=interrupt")[::2] == (130, "interrupted\n")


def test_a_good_call_returns_and_leaves_its_value(probe, tmp_path):
    code, _, err = probe("x=3", "solver=adamw", "paths.run_dir=here")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "here" / "objective.json").read_text()) == {"objective": 9.0}
    assert (tmp_path / "here" / ".hydra" / "config.yaml").exists()


def test_flags_may_stand_between_overrides(probe):
    code, out, _ = probe("x=3", "--cfg", "job", "steps=4")
    assert code == 0
    assert "x: 3" in out
    assert "steps: 4" in out


def test_a_defect_keeps_its_trace(probe):
    code, _, err = probe("fail=defect")
    assert code == 1
    assert "Traceback" in err
    assert "RuntimeError: a defect" in err


def test_a_defect_in_a_constructor_keeps_its_trace(probe):
    code, _, err = probe("fail=instantiate")
    assert code == 1
    assert "Traceback" in err
    assert "torch/nn/modules/linear.py" in err


def test_full_errors_are_shown_when_asked_for(probe, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Could not override 'setps'"):
        probe("setps=3")
    with pytest.raises(door.InputError, match="cannot be read"):
        probe("fail=input")


def test_help_lists_groups(probe):
    code, out, _ = probe("--help")
    assert code == 0
    assert "A command that only tests use." in out
    assert "colour: blue, red" in out


def test_info_and_completion(probe):
    assert probe("--info", "defaults")[0] == 0
    code, out, _ = probe("-sc", "install=bash")
    assert code == 0
    assert "complete" in out


def test_a_process_of_another_rank_keeps_no_log_and_no_objective(probe, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert probe("paths.run_dir=here")[0] == 0
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [".hydra", "parent.txt"]


def test_run_folder_is_what_hydra_made_and_absolute(probe, tmp_path):
    assert probe("hydra.run.dir=there")[0] == 0
    assert (tmp_path / "there" / "parent.txt").exists()


def test_the_door_imports_no_torch():
    line = "import ivt2.cli.door, ivt2.cli.train_config, sys; sys.exit(bool({'torch', 'pydantic'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", line], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job", "--resolve"]])
def test_help_and_configuration_are_quick(arguments):
    start = time.monotonic()
    shown = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.isascii()
    assert time.monotonic() - start < 3.0  # 0.3 to 0.6 s when the machine is idle


def test_every_allowed_start_names_its_home():
    assert all(start.startswith(home) for start, home in ALLOWED.items())

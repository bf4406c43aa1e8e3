import pytest

from ivt2.cli.targets import check_names, locate
from ivt2.errors import InputError


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "lightning.pytorch.LightningModule",
        "lightning.pytorch.TrainerX",
        "ivt2x.Thing",
        "ivt2..errors.InputError",
        "ivt2.errors.InputError.__init__.__globals__",
        "numpy.load",
        "",
        3,
        None,
    ],
)
def test_names_outside_the_list_are_refused(target):
    with pytest.raises(InputError, match=r"^a\.0\.b\._target_: "):
        check_names({"a": [{"b": {"_target_": target}}]})


@pytest.mark.parametrize("keyword", ["_args_", "_recursive_"])
def test_refused_keywords(keyword):
    with pytest.raises(InputError, match=keyword):
        check_names({"a": {"_target_": "torch.nn.Linear", keyword: [1]}})


def test_allowed_names_pass_without_import():
    check_names({"a": {"_target_": "ivt2.no_such.Thing"}, "b": [{"_target_": "torchmetrics.Metric"}], "c": 1})


@pytest.mark.parametrize(
    "target",
    [
        "ivt2.cli.door.os.system",
        "ivt2.cli.door.subprocess",
        "ivt2.cli.sweep.subprocess.run",
        "ivt2.cli.sweep.subprocess.Popen",
        "ivt2.cli.door",
        "ivt2.cli.door.CONF",
        "ivt2.cli.run_folder.shutil.rmtree",
        "torch.nn.modules.linear.torch.load",
        "torch.optim.adamw.torch.Tensor",
        "ivt2.no_such.Thing",
        "ivt2.cli.door.nothing",
        "torch.nn.Linaer",
    ],
)
def test_names_that_lead_elsewhere_are_refused(target):
    check_names({"_target_": target})
    with pytest.raises(InputError, match=r"is not a class or function of|does not exist"):
        locate(target)


def test_locate_finds_classes_and_functions():
    import torch

    assert locate("torch.nn.Linear") is torch.nn.Linear
    assert locate("torch.optim.AdamW") is torch.optim.AdamW
    assert locate("ivt2.cli.targets.locate") is locate


def test_a_broken_import_inside_a_module_is_a_defect(monkeypatch, tmp_path):
    import ivt2

    (tmp_path / "broken_piece.py").write_text("import module_that_does_not_exist\n")
    monkeypatch.setattr(ivt2, "__path__", [*ivt2.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="module_that_does_not_exist"):
        locate("ivt2.broken_piece.Thing")

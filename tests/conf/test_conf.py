"""Every file under ``conf/`` composes, binds to the constructors it names, and every experiment can be built."""

from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ivt2.cli.door import CONF
from ivt2.cli.schema import validate
from ivt2.cli.shards import ShardsConfig
from ivt2.cli.train_config import TrainConfig

EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
ROOTS = sorted(file.stem for file in CONF.glob("*.yaml"))
NOT_COMPONENTS = {"experiment", "hydra", "sweep", "debug", "local", "paths", "source", "suite"}


@cache
def choices(group):
    return sorted(str(file.relative_to(CONF / group).with_suffix("")) for file in (CONF / group).rglob("*.yaml"))


@cache
def defaults(root="train"):
    listed = yaml.safe_load((CONF / f"{root}.yaml").read_text())["defaults"]
    return {group: choice for item in listed if isinstance(item, dict) for group, choice in item.items()}


def composed(*overrides, root="train"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, overrides=list(overrides))


@cache
def experiment_config(experiment):
    """To be copied before it is changed."""
    return composed(f"experiment={experiment}")


@cache
def base():
    """Something in every group that ``train.yaml`` leaves to the experiment."""
    open_groups = [group for group, choice in defaults().items() if choice is None and choices(group)]
    pick = {
        group: "tiny" if "tiny" in choices(group) else choices(group)[0]
        for group in open_groups
        if group not in NOT_COMPONENTS
    }
    return ["~experiment", "name=any", "task=any", *(f"{group}={choice}" for group, choice in pick.items())]


def components():
    groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name not in NOT_COMPONENTS)
    return [(group, choice) for group in groups for choice in choices(group)]


@pytest.mark.parametrize(("group", "choice"), components())
def test_every_choice_binds_to_its_constructor(group, choice):
    listed = "" if group in defaults() else "+"
    cfg = composed(*(item for item in base() if not item.startswith(f"{group}=")), f"{listed}{group}={choice}")
    assert group in cfg
    validate(cfg, TrainConfig)


@cache
def packing():
    """The command that packs, as Hydra composes it with a source outside the group's own package."""
    return composed("source=folder", "media_root=media", "output=out", root="shards")


@pytest.mark.parametrize("choice", choices("source"))
def test_every_source_binds_builds_and_says_what_it_reads(choice):
    file = CONF / "source" / f"{choice}.yaml"
    lines = file.read_text().splitlines()
    at_root = lines[0] == "# @package _global_"
    cfg = packing().copy()
    cfg.source, cfg.annotations = None, "a.csv"
    cfg = OmegaConf.merge(cfg, OmegaConf.load(file) if at_root else {"source": OmegaConf.load(file)})
    validate(cfg, ShardsConfig)
    assert instantiate(cfg.source, _convert_="all").name == choice.split("_classes", maxsplit=1)[0]
    assert lines[at_root].startswith("# "), "the file says what it reads"


@pytest.mark.parametrize("choice", [f"{group}={choice}" for group in ("debug", "sweep") for choice in choices(group)])
def test_every_preset_fits_the_default_experiment(choice):
    validate(composed(choice), TrainConfig)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_binds_and_builds_on_the_meta_device(experiment):
    cfg = experiment_config(experiment).copy()
    validate(cfg, TrainConfig)
    with torch.device("meta"):
        module = instantiate(cfg.module, _convert_="all")
    parameters = list(module.parameters())
    assert parameters
    assert all(parameter.is_meta for parameter in parameters)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_what_it_is(experiment):
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert lines[0] == "# @package _global_"
    assert any(f"experiment={experiment}" in line for line in header), "the header gives the command"
    assert experiment_config(experiment).name == experiment


@pytest.mark.parametrize("root", ROOTS)
def test_every_command_has_help(root):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(root, return_hydra_config=True)
    assert not OmegaConf.is_missing(cfg.hydra.help, "header")
    assert not OmegaConf.is_missing(cfg.hydra.help, "footer")
    assert ("$APP_CONFIG_GROUPS" if root == "train" else "$CONFIG") in cfg.hydra.help.template


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(Path(file).relative_to(CONF)))
def test_every_file_is_short_and_speaks_ascii(file):
    text = file.read_text()
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 120

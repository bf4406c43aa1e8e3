"""Exact: what README, CONTRIBUTING and docs/ say about commands, files and examples is so."""

import importlib
import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ivt2.checkpoint.zoo import RELEASES
from ivt2.cli.door import CONF
from ivt2.cli.schema import validate
from ivt2.cli.train_config import TrainConfig
from ivt2.modules.stage2_terms import TERMS

ROOT = Path(__file__).parents[2]
CARDS = (ROOT / "experiments").rglob("*.md")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *CARDS])
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FLAGS_WITH_VALUE = {"-p", "--package"}


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """Kind (bash, yaml, python), path of the file that it shows if any, and text of each fenced block."""
    found = []
    for block in FENCE.finditer(page.read_text()):
        kind, _, path = block["info"].partition(" ")
        found.append((kind, path.strip(), block["body"]))
    return found


def lines():
    """Page and command of every line of every shell block."""
    for page in PAGES:
        for kind, _, body in blocks(page):
            for line in body.splitlines() if kind == "bash" else ():
                yield name_of(page), line


def commands():
    return sorted({line.split("  #")[0].strip() for _, line in lines() if line.startswith("python ")})


def examples(prefix):
    return {path: body for _, path, body in blocks(ROOT / "CONTRIBUTING.md") if path.startswith(prefix)}


def parsed(command):
    """Root of the configuration, flags and overrides of a command."""
    words = shlex.split(command)[1:]
    if words[0] == "train.py":
        root, words = "train", words[1:]
    else:
        assert words[0] == "-m", command
        assert (ROOT / f"{words[1].replace('.', '/')}.py").is_file(), f"{command}: there is no module {words[1]}"
        root, words = words[1].rpartition(".")[2], words[2:]
    flags = [word for word in words if word.startswith("-")]
    assert not FLAGS_WITH_VALUE & set(flags), "teach this test to skip the flag's value"
    return root, flags, [word for word in words if not word.startswith("-") and word != "job"]


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    """``conf/`` with the files that CONTRIBUTING adds to it."""
    folder = tmp_path_factory.mktemp("docs") / "conf"
    shutil.copytree(CONF, folder, ignore=shutil.ignore_patterns("local"))
    for path, text in examples("conf/").items():
        file = folder.parent / path
        assert not (ROOT / path).exists(), f"{path}: the example would replace a file"
        file.write_text(text)
    return folder


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    """The modules that CONTRIBUTING adds, importable under their names."""
    folder = tmp_path_factory.mktemp("code")
    with pytest.MonkeyPatch.context() as patch:
        for path, text in examples("ivt2/").items():
            assert not (ROOT / path).exists(), f"{path}: the example would replace a file"
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            package = importlib.import_module(str(Path(path).parent).replace("/", "."))
            patch.setattr(package, "__path__", [*package.__path__, str(file.parent)])
        importlib.invalidate_caches()
        yield folder
        for path in examples("ivt2/"):
            name = path.removesuffix(".py").replace("/", ".")
            if sys.modules.pop(name, None) is not None:
                package, _, own = name.rpartition(".")
                delattr(sys.modules[package], own)


def composed(conf, root, overrides):
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose(root, overrides=overrides)


def checked(conf, command):
    """Compose a command's configuration, or each first choice of a sweep's, and check it as the door does."""
    root, flags, overrides = parsed(command)
    if "--help" in flags:
        return composed(conf, root, [])
    if "-m" in flags:
        overrides = [re.sub(r"^([\w./]+=[^\[{(,]+),.*", r"\1", override) for override in overrides]
    cfg = composed(conf, root, overrides)
    if "--cfg" in flags:
        if "--resolve" in flags:
            OmegaConf.resolve(cfg)
    else:
        validate(cfg, TrainConfig if root == "train" else None)
    return cfg


@pytest.mark.parametrize("command", commands())
def test_every_command_composes(conf, command):
    assert checked(conf, command)


@pytest.mark.parametrize(
    "command",
    [
        "python train.py experiment=nothing",
        "python train.py optimizer.rate=1",
        "python train.py trainer.max_epochs=two",
        "python -m ivt2.cli.nothing run_dir=outputs",
    ],
)
def test_a_wrong_command_would_be_found(conf, command):
    with pytest.raises(Exception, match=r"nothing|rate|max_epochs"):
        checked(conf, command)


def test_the_pages_have_commands_of_every_door():
    assert {parsed(command)[0] for command in commands()} >= {"train", "report", "shards"}


def test_every_line_of_a_shell_block_is_a_known_command():
    known = ("python train.py", "python -m ivt2.cli.", "make ", "pip install ")
    assert [f"{page}: {line}" for page, line in lines() if not line.startswith(known)] == []


@cache
def makefile():
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_exists(page):
    text = page.read_text()
    spoken = [*SPAN.findall(text), *(line.split("  #")[0] for at, line in lines() if at == name_of(page))]
    named = {words[1] for words in map(str.split, spoken) if len(words) > 1 and words[0] == "make"}
    assert named <= makefile()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path) if path else page
        assert goal.exists(), f"{name_of(page)}: {target}"
        titles = re.findall(r"^#+ (.+)$", goal.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {title.lower().replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=name_of)  # it keeps old names
def test_every_file_that_is_named_exists(page):
    paths = re.compile(r"^(?:(?:conf|docs|ivt2|tests)/[\w./-]*|[A-Z]+\.md|[\w]+\.py|[\w]+\.toml|constraints\.txt)$")
    allowed = {"conf/local/default.yaml"}  # this machine's own, not in git
    named = [span for span in SPAN.findall(FENCE.sub("", page.read_text())) if paths.match(span)]
    assert [span for span in named if span not in allowed and not (ROOT / span).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_experiment_and_every_name_of_the_package_exists(conf, page):
    text = page.read_text()
    named = set(re.findall(r"experiment=([a-z0-9_]+)", text))
    assert {name for name in named if not (conf / "experiment" / f"{name}.yaml").exists()} == set()
    for name in re.findall(r"`(ivt2(?:\.\w+)+)[(`]", text):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute) or importlib.import_module(name), name


def test_the_file_map_of_the_readme_names_every_folder_of_the_package():
    section = (ROOT / "README.md").read_text().partition("## Where things are")[2].partition("\n## ")[0]
    mapped = {span.split("/")[1] for span in SPAN.findall(section) if span.startswith("ivt2/")}
    folders = {folder.parent.name for folder in (ROOT / "ivt2").glob("*/__init__.py")}
    assert folders <= mapped


def test_every_logged_key_of_the_objective_is_listed():
    page = (ROOT / "docs" / "numbers.md").read_text()
    assert [term for term in TERMS if f"`train/loss_{term}`" not in page] == []


@pytest.mark.parametrize("path", sorted(examples("conf/experiment/")))
def test_an_example_of_an_experiment_builds(conf, path):
    cfg = checked(conf, f"python train.py experiment={Path(path).stem}")
    with torch.device("meta"):
        module = instantiate(cfg.module, _convert_="all")
    assert all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("path", sorted(examples("tests/")))
def test_an_example_of_a_test_passes(path):
    scope = {"__name__": f"docs_example_{Path(path).stem}"}
    exec(compile(examples("tests/")[path], path, "exec"), scope)
    functions = [value for name, value in scope.items() if name.startswith("test_")]
    for function in functions:
        function()
    assert functions or callable(scope.get("check"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_are_ascii_and_lines_short(page):
    text = page.read_text()
    assert text.isascii()
    prose = [line for line in FENCE.sub("", text).splitlines() if not line.startswith("|")]
    assert max(map(len, prose)) <= 120


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def table_of_releases():
    """Cells of each row of the table of what was verified."""
    page = (ROOT / "docs" / "checkpoints.md").read_text().partition("## What was verified")[2]
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    return [[SPAN.findall(cell) for cell in row] for row in rows]


def patterns(names):
    """Regular expressions of names such as ``internvideo2-{s14,b14}-*``; ``-audio`` continues the one before."""
    whole = []
    for name in names:
        whole.append(whole[-1] + name if name.startswith("-") else name)
    for name in whole:
        choices = re.sub(r"\{([^}]*)\}", lambda group: f"({group[1].replace(',', '|')})", name)
        yield choices.replace("*", ".*")


def test_what_was_verified_is_said_of_every_release():
    for release in RELEASES.values():
        rows = [row for row in table_of_releases() if any(re.fullmatch(one, release.name) for one in patterns(row[0]))]
        assert len(rows) == 1, release.name
        assert {part.key_map.name for part in release.parts} <= set(rows[0][1]), release.name


def test_what_was_verified_is_said_of_nothing_else():
    key_maps = {part.key_map.name for release in RELEASES.values() for part in release.parts}
    for names, maps, *_ in table_of_releases():
        assert set(maps) <= key_maps
        for one in patterns(names):
            assert any(re.fullmatch(one, name) for name in RELEASES), one

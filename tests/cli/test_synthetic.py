"""Whole: what the command writes and what it says to type next, typed."""

import shlex

import pytest
from hydra import compose, initialize_config_dir

from ivt2.cli import shards, synthetic, validate
from ivt2.cli.door import CONF
from ivt2.cli.schema import validate as check
from ivt2.data.annotations import facts_of
from ivt2.data.shards import ShardSet
from ivt2.data.synthetic import MOTIONS, make_scenes
from ivt2.data.synthetic_datasets import describe_dataset
from tests.programs import run_main

COMMANDS = {"ivt2.cli.shards": shards.main, "ivt2.cli.validate": validate.main}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run a command in this process; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return lambda main, *arguments: (run_main(main, ["command", *arguments], monkeypatch), *capsys.readouterr())


def test_the_commands_that_it_prints_pack_and_check_what_it_wrote(run, tmp_path):
    code, out, err = run(synthetic.main, "dataset=k400", 'output="my data/it\'s, k400"', "num=3", "seed=5")
    assert code == 0
    first, *commands = out.splitlines()
    assert first == "my data/it's, k400: k400, train, media files: 3; next:"
    assert "3/3" in err
    assert len(commands) == 2
    for line in commands:
        python, flag, module, *arguments = shlex.split(line)
        assert [python, flag] == ["python", "-m"]
        code, out, err = run(COMMANDS[module], *arguments)
        assert code == 0, err
    assert "can be trained on; 3 of 3 samples were decoded" in out
    written = ShardSet.open(tmp_path / "my data" / "it's, k400" / "shards" / "train")
    motions = [scene.combination.motion for scene in make_scenes("train", 3, 5)]
    expected = [{"label": motion, "class_index": MOTIONS.index(motion)} for motion in motions]
    assert [facts_of(written.read(index).members) for index in range(3)] == expected


@pytest.mark.parametrize("name", ["folder", "ssv2", "audiocaps_csv", "img2dataset"])
def test_what_it_prints_composes(name):
    dataset = describe_dataset(name, split="val", num=2, seed=0)
    commands = synthetic.next_commands(name, dataset, "out")
    assert len(commands) == (1 if dataset.tarball else 2)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for line in commands:
            _, _, module, *overrides = shlex.split(line)
            check(compose(module.rpartition(".")[2], overrides=overrides))


def test_each_annotation_file_is_packed_to_a_folder_of_its_own():
    commands = synthetic.next_commands("videochat2", describe_dataset("videochat2", split="val", num=2, seed=0), "out")
    for corpus, packing, checking in zip(("video", "image", "caption"), commands[::2], commands[1::2], strict=True):
        assert f" annotations=out/val_{corpus}.json media_root=out/val output=out/shards/val_{corpus}" in packing
        assert f" shards=out/shards/val_{corpus} " in checking


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["dataset=k40"], "dataset=k40: no such dataset; give k400"),
        (["dataset=k400", "split=dev"], "split: expected"),
        (["dataset=k400", "output=file/out"], "cannot be written"),
        (["dataset=k400", "nums=3"], "nums: no such key; did you mean 'num'?"),
        ([], "dataset: has no value; set it with dataset=..."),
    ],
)
def test_mistakes_are_one_line(run, arguments, expected, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = run(synthetic.main, "output=out", *arguments)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "out").exists()

import logging

import pytest
from omegaconf import OmegaConf

from ivt2.cli.run_folder import MARK, close_log_files, pin_paths, prepare, process_rank
from ivt2.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def older(folder):
    prepare(folder, replace=False, resume=False)
    (folder / "checkpoints" / "last").mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    (folder / "train.log").write_text("old")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_fresh_folder_is_marked(folder):
    prepare(folder, replace=False, resume=False)
    assert names(folder) == [".hydra", MARK]


def test_an_older_run_is_not_mixed_with_a_new_one(older):
    with pytest.raises(InputError, match=r"holds an older run; go on with ckpt_path=last, say replace=true"):
        prepare(older, replace=False, resume=False)
    assert "result.json" in names(older)


def test_an_older_run_is_replaced_when_asked(older):
    prepare(older, replace=True, resume=False)
    assert names(older) == [".hydra", MARK]


def test_a_resumed_run_keeps_everything(older):
    before = names(older)
    prepare(older, replace=True, resume=True)
    assert names(older) == before


def test_files_that_no_run_wrote_are_never_removed(folder):
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds files that no run wrote"):
        prepare(folder, replace=True, resume=False)
    assert (folder / "thesis.tex").exists()


def test_a_link_is_removed_but_not_what_it_leads_to(older, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shard.tar").touch()
    (older / "data").symlink_to(tmp_path / "data")
    prepare(older, replace=True, resume=False)
    assert (tmp_path / "data" / "shard.tar").exists()
    assert not (older / "data").exists()


def test_the_open_log_survives_emptied(older):
    handler = logging.FileHandler(older / "train.log")
    logging.getLogger().addHandler(handler)
    try:
        prepare(older, replace=True, resume=False)
        logging.getLogger().error("new")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert (older / "train.log").read_text() == "new\n"


def test_close_log_files(tmp_path):
    handler = logging.FileHandler(tmp_path / "a.log", delay=True)
    logging.getLogger().addHandler(handler)
    close_log_files()
    assert handler not in logging.getLogger().handlers
    assert not (tmp_path / "a.log").exists()


def test_pin_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create({"paths": {"root": ".", "data_dir": "${.root}/data", "run_dir": "${.root}/x"}})
    OmegaConf.set_struct(cfg, True)
    pin_paths(cfg, tmp_path / "run")
    assert cfg.paths.data_dir == f"{tmp_path}/data"
    assert cfg.paths.run_dir == f"{tmp_path}/run"
    pin_paths(OmegaConf.create({}), tmp_path)


@pytest.mark.parametrize(("name", "rank"), [("RANK", 3), ("LOCAL_RANK", 1), ("SLURM_PROCID", 2), ("HOME_RANK", 0)])
def test_process_rank(monkeypatch, name, rank):
    monkeypatch.setenv(name, str(rank or 5))
    assert process_rank() == rank

from matplotlib.figure import Figure

from ivt2.callbacks.tracking import mlflow_run, safe_name, save_figure


def test_run_is_found_and_created(make_trainer, mlflow_logger, memory_logger):
    logger = mlflow_logger(run_name="a")
    run = mlflow_run(make_trainer(logger=[memory_logger, logger]))
    assert run.run_id == logger.run_id
    assert run.client.get_run(run.run_id).info.run_name == "a"
    assert mlflow_run(make_trainer(logger=[memory_logger])) is None
    assert mlflow_run(make_trainer(logger=[])) is None


def test_safe_name():
    assert safe_name("msr vtt/1k:A") == "msr_vtt_1k_A"
    assert safe_name("../..") == "_"
    assert safe_name("") == "_"


def test_a_figure_goes_to_the_run_or_else_to_the_folder(make_trainer, mlflow_logger, tmp_path):
    for _ in range(2):
        save_figure(make_trainer(logger=[mlflow_logger(run_name="a")]), tmp_path / "run", "probe/a", Figure())
    assert not (tmp_path / "run").exists()
    assert all(path.name == "a.png" for path in (tmp_path / "artifacts").rglob("figures/probe/*"))
    assert list((tmp_path / "artifacts").rglob("figures/probe/*"))
    save_figure(make_trainer(), tmp_path / "run", "probe/a", Figure())
    assert [path.name for path in (tmp_path / "run" / "probe").iterdir()] == ["a.png"]

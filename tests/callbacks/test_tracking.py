from ivt2.callbacks.tracking import mlflow_run, safe_name


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

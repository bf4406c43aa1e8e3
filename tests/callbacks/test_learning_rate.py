import pytest

from ivt2.callbacks.learning_rate import LearningRate


def test_rate_of_each_logged_step(make_trainer, memory_logger, module, data):
    options = {"log_every_n_steps": 2, "limit_val_batches": 0}
    make_trainer(max_steps=4, logger=memory_logger, callbacks=[LearningRate()], **options).fit(module, data)
    logged = {step: values["lr-AdamW"] for step, values in memory_logger.logged if "lr-AdamW" in values}
    assert list(logged) == [1, 3]
    assert logged[1] > logged[3] > 0
    assert logged[1] == pytest.approx(1e-2, rel=0.02)


def test_without_a_logger_nothing_happens(make_trainer, module, data):
    trainer = make_trainer(max_steps=2, callbacks=[LearningRate()])
    trainer.fit(module, data)
    assert trainer.global_step == 2

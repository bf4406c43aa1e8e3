import pytest

from ivt2.batch import Skipped
from ivt2.callbacks.skipped import SkippedSamples
from ivt2.data.ledger import Ledger


@pytest.fixture
def ledger():
    ledger = Ledger(1.0)
    ledger.add_seen(100)
    for source, reason, count in (("web[vid]", "text_empty", 2), ("yt", "text_empty", 1), ("yt", "no stream", 4)):
        for position in range(count):
            ledger.add(Skipped(source, f"{position}", reason))
    return ledger


def test_counts_are_logged_at_each_interval(make_trainer, memory_logger, module, data, ledger):
    data.ledger = ledger
    options = {"log_every_n_steps": 2, "limit_val_batches": 0}
    make_trainer(max_steps=4, logger=memory_logger, callbacks=[SkippedSamples()], **options).fit(module, data)
    logged = [(step, values) for step, values in memory_logger.logged if "data/skipped/text_empty" in values]
    assert [step for step, _ in logged] == [1, 3]
    assert logged[0][1]["data/skipped/text_empty"] == 3
    assert logged[0][1]["data/skipped/no_stream"] == 4


def test_table_at_the_end(make_trainer, module, data, ledger, capsys):
    data.ledger = ledger
    make_trainer(max_steps=1, callbacks=[SkippedSamples()]).fit(module, data)
    shown = capsys.readouterr().out
    assert "skipped 7 of 100 samples" in shown
    assert "web[vid]" in shown  # as it stands, not as markup
    assert [line.split()[-2] for line in shown.splitlines() if "no stream" in line] == ["4"]


@pytest.mark.parametrize("with_ledger", [True, False])
def test_quiet_when_nothing_was_skipped(make_trainer, module, data, capsys, with_ledger):
    if with_ledger:
        data.ledger = Ledger(0)
    trainer = make_trainer(max_steps=1, callbacks=[SkippedSamples()])
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert capsys.readouterr().out == ""
    assert not [name for name in trainer.callback_metrics if name.startswith("data/")]

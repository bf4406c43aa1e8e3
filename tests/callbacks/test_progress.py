import io

import pytest
import rich

from ivt2.callbacks.progress import Progress, progress_words


def test_words():
    assert progress_words(20, 100, 2.0) == ["step 20/100", "2.00 steps/s", "0:00:40 left"]
    assert progress_words(20, 100, 0.0)[2] == "-:--:-- left"
    assert progress_words(20, float("inf"), 2.0) == ["step 20", "2.00 steps/s"]


@pytest.fixture
def screen(monkeypatch):
    def make(*, terminal):
        console = rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=200)
        monkeypatch.setattr(rich, "_console", console)
        return console.file

    return make


def test_without_a_terminal_lines_from_time_to_time(make_trainer, module, data, screen):
    file = screen(terminal=False)
    trainer = make_trainer(enable_progress_bar=True, max_steps=7, callbacks=[Progress(interval_s=1000)])
    trainer.fit(module, data)
    lines = file.getvalue().splitlines()
    assert [line.split("  ")[:2] for line in lines] == [["epoch 0", "step 1/7"], ["epoch 1", "step 7/7"]]
    assert lines[1].endswith("0:00:00 left")
    assert "\x1b" not in file.getvalue()


def test_without_a_terminal_every_kind_of_step(make_trainer, module, data, screen):
    file = screen(terminal=False)
    trainer = make_trainer(enable_progress_bar=True, max_epochs=1, callbacks=[Progress(interval_s=0)])
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    shown = file.getvalue()
    assert "step 3/5" in shown
    assert "validation batch 2/2" in shown
    assert "test batch 2/2" in shown


def test_in_a_terminal_the_bar_shows_rate_and_time_left(make_trainer, module, data, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes a terminal for rich; Lightning builds its own console
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(rich, "_console", None)
    trainer = make_trainer(enable_progress_bar=True, max_steps=5, callbacks=[Progress()])
    trainer.fit(module, data)
    shown = capsys.readouterr().out
    assert "it/s" in shown
    assert "5/5" in shown
    assert "•" in shown
    assert "left" not in shown


def test_values_are_read_twice_a_second_at_most(make_trainer, module, data, screen, monkeypatch):
    screen(terminal=True)
    reads = []
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.RichProgressBar.get_metrics", lambda *_: reads.append(1) or {"v_num": 1, "x": 2.0}
    )
    callback = Progress()
    trainer = make_trainer(enable_progress_bar=True, callbacks=[callback])
    assert [callback.get_metrics(trainer, module) for _ in range(10)] == [{"x": 2.0}] * 10
    assert len(reads) == 1

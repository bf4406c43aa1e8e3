"""Whole: a resume that is wrong is found."""

import time

from ivt2.cli.benchmarks.kills import KillsSuite
from ivt2.datamodules.synthetic import SyntheticDataModule


def wait_for(file):
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    return 0


def test_a_loader_that_loses_a_step_at_the_resume_does_not_pass(monkeypatch, tmp_path):
    load, kill = SyntheticDataModule.load_state_dict, KillsSuite._killed

    def lose(self, state):
        load(self, {**state, "loader": {**state["loader"], "position": state["loader"]["position"] + 1}})

    monkeypatch.setattr(SyntheticDataModule, "load_state_dict", lose)

    def kill_after_a_state(self, clips, folder, moment_s):
        return kill(self, clips, folder, lambda: wait_for(folder / "state.pt"))

    monkeypatch.setattr(KillsSuite, "_killed", kill_after_a_state)
    suite = KillsSuite(trials=1, num_clips=16, num_epochs=2, save_every=1, num_workers=0, seed=0)
    (figure,) = suite.run(tmp_path, lambda: None)
    assert (figure.value.median, figure.reached) == (0, "no")

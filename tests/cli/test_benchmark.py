"""Exact: the clocks count what they should, turns alternate. Whole: every suite runs, its figures come out as json."""

import io
import json
import multiprocessing
import re
import time
from dataclasses import replace

import av
import numpy as np
import pytest

from ivt2.cli import benchmark
from ivt2.cli.benchmarks import timing
from ivt2.cli.benchmarks.clips import prepared_footage, raw_footage, rendered, write_shards
from ivt2.cli.benchmarks.kills import KillsSuite
from ivt2.cli.benchmarks.loader import BATCH_SIZE, datamodule, decoding
from ivt2.cli.benchmarks.timing import Comparison, Cost, Figure, Quartiles, Stopwatch, in_processes, interleaved
from ivt2.cli.benchmarks.transforms import _moving, _ours, _reference
from ivt2.cli.door import CONF
from ivt2.datamodules.synthetic import SyntheticDataModule
from ivt2.errors import InputError
from ivt2.ops.pixels import normalize_pixels
from tests.programs import run_main

SUITES = sorted(file.stem for file in (CONF / "data").glob("*.yaml"))
TINY = {
    "loader": "num_frames=[2] isolate=[false] num_workers=1 num_clips=1 clip_frames=4 num_batches=1 pairs=1",
    "isolation": "num_readers=[1] num_frames=2 large_frames=4 num_clips=1 num_items=2 pairs=1",
    "transforms": "sizes=[[64,96]] num_frames=2 num_draws=1 pairs=1",
    "packing": "file_bytes=[2000] total_bytes=8000 num_processes=[1] pairs=1",
    "resume": "num_shards=[4] num_samples=512 step=3 num_workers=0 pairs=1",
    "kills": "trials=1 num_clips=8 num_epochs=2 save_every=1 num_workers=1",
    "prepared": "num_frames=[4] num_workers=0 num_clips=1 clip_frames=6 num_batches=1 pairs=1",
}


def burn(cpu_s):
    start = time.process_time()
    while time.process_time() - start < cpu_s:
        pass


def burn_and_wait(cpu_s, done, go):
    burn(cpu_s)
    done.set()
    go.wait()


def test_cpu_time_counts_processes_that_live_and_those_that_have_ended():
    context = multiprocessing.get_context("fork")
    done, go = context.Event(), context.Event()
    watch = Stopwatch()
    living = context.Process(target=burn_and_wait, args=(0.1, done, go))
    living.start()
    done.wait()
    first = watch.read()
    go.set()
    living.join()
    again = watch.read()
    assert 0.08 <= first.cpu_s < 0.3
    assert first.cpu_s - 0.02 <= again.cpu_s < first.cpu_s + 0.1
    assert again.wall_s > first.wall_s >= 0.09
    watch = Stopwatch()
    time.sleep(0.05)
    idle = watch.read()
    assert idle.cpu_s < 0.03
    assert idle.wall_s >= 0.05


def test_turns_alternate_and_each_pair_gives_a_ratio():
    order, costs = (
        [],
        {"a": iter([Cost(1, 1), Cost(2, 4), Cost(1, 8)]), "b": iter([Cost(2, 1), Cost(8, 1), Cost(3, 1)])},
    )

    def turn(side):
        order.append(side)
        return next(costs[side])

    comparison = interleaved(lambda: turn("a"), lambda: turn("b"), pairs=3, tick=lambda: order.append("."))
    assert "".join(order) == "a.b.b.a.a.b."
    assert comparison.speed("wall") == Quartiles(2.5, 3.0, 3.5)  # of 2, 4, 3
    assert comparison.speed("cpu").median == 0.25
    with pytest.raises(InputError, match="pairs=0: must be at least 1"):
        interleaved(lambda: turn("a"), lambda: turn("b"), pairs=0, tick=lambda: None)


@pytest.mark.parametrize(
    ("value", "floor", "aim", "expected"),
    [
        (0.96, 0.85, 0.95, "aim"),
        (0.86, 0.85, 0.95, "floor"),
        (0.84, 0.85, 0.95, "no"),
        (1.9, 20.0, 2.0, "aim"),
        (19.0, 20.0, 2.0, "floor"),
        (21.0, 20.0, 2.0, "no"),
        (50.0, 50, 50, "aim"),
        (49.0, 50, 50, "no"),
        (1.0, None, None, ""),
    ],
)
def test_a_figure_says_what_it_reached_whether_more_is_better_or_less(value, floor, aim, expected):
    figure = Figure(what="x", value=Quartiles(0, value, 99), unit="x", floor=floor, aim=aim, details={})
    assert figure.reached == expected


def test_time_for_an_item_is_that_of_its_turn_shared_out():
    comparison = Comparison((Cost(1.0, 2.0),), (Cost(4.0, 1.0),))
    figure = timing.speed_figure("x", comparison, sides=("new", "old"), items=10, clock="wall")
    assert figure.value.median == 4
    assert figure.details == {
        "new ms": 100,
        "new CPU ms": 200,
        "old ms": 400,
        "old CPU ms": 100,
        "ratio by CPU": 0.5,
    }


def test_processes_share_out_all_items_and_their_start_does_not_count(tmp_path):
    def make():
        time.sleep(0.2)
        burn(0.1)

        def work(number):
            burn(0.02)
            with (tmp_path / "items").open("a") as file:
                file.write(f"{number}\n")

        return work

    cost = in_processes(make, 6, num_processes=2)
    items = sorted(map(int, (tmp_path / "items").read_text().split()))
    assert items == [0, 0, *range(6)], "two of them to warm up"
    assert 0.07 <= cost.cpu_s < 0.22


def test_a_process_that_fails_ends_the_measurement(capfd):
    def make():
        raise ValueError("no clip")

    with pytest.raises(RuntimeError, match="a process that was measured has failed"):
        in_processes(make, 1, num_processes=2)
    assert "no clip" in capfd.readouterr().err


@pytest.mark.parametrize(("footage", "gop"), [(prepared_footage(20), 15), (raw_footage(20), 250)])
def test_clips_look_as_asked_differ_and_are_rendered_once(tmp_path, footage, gop):
    small = replace(footage, width=64, height=48)
    first, second = rendered(tmp_path, small, 2)
    assert first != second
    with av.open(io.BytesIO(first)) as clip:
        frames = list(clip.decode(video=0))
    assert [frame.pts for frame in frames if frame.key_frame] == [frames[at].pts for at in range(0, 20, gop)]
    assert ("bf" in footage.options) == all(frame.pict_type != av.video.frame.PictureType.B for frame in frames)
    assert frames[0].to_ndarray().shape == (72, 64)
    assert not np.array_equal(frames[0].to_ndarray(), frames[-1].to_ndarray())
    (first_file,) = tmp_path.glob("*_000.mp4")
    first_file.write_bytes(b"kept")
    assert rendered(tmp_path, small, 2) == [b"kept", second]


def test_loader_and_bare_decoder_get_the_same_frames(tmp_path):
    clips = rendered(tmp_path, replace(raw_footage(6), width=256, height=256), 2)
    data = datamodule(write_shards(tmp_path / "set", clips, BATCH_SIZE), num_frames=3, num_workers=0, isolate=False)
    data.train_transforms = []
    data.setup("fit")
    (batch,) = data.train_dataloader()
    bare = decoding(clips, 3)
    for key, video in zip(batch["key"], batch["video"], strict=True):
        assert np.array_equal(video, bare(int(key.removeprefix("clip_"))))


def test_both_chains_of_transforms_give_the_same_pixels():
    pixels = _moving(2, 240, 300)
    for seed in range(4):
        ours, reference = (chain(pixels, np.random.default_rng(seed)) for chain in (_ours, _reference))
        assert (normalize_pixels(ours[None])[0] - reference).abs().max() < 1.5 / 255 / 0.224


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command in this process; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = run_main(benchmark.main, ["benchmark", *arguments], monkeypatch)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_prints_a_table_and_writes_its_figures(run, tmp_path, suite):
    settings = [f"data.{setting}" for setting in TINY[suite].split()]
    code, out, err = run(f"data={suite}", *settings, "folder=kept", "output=out/figures.json")
    assert code == 0
    assert suite in out
    facts = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert facts["suite"] == suite
    assert facts["machine"]["cpus"] >= 1
    assert facts["figures"]
    for figure in facts["figures"]:
        assert figure["value"]["low"] <= figure["value"]["median"] <= figure["value"]["high"]
        assert figure["value"]["median"] > 0
        assert all(value > 0 for name, value in figure["details"].items() if "CPU" not in name and "kill" not in name)
        assert (figure["floor"] is None) == (suite == "isolation")
    assert re.search(r"\b(\d+)/\1\b", err), "the bar came to its end"
    assert (CONF / "data" / f"{suite}.yaml").read_text().startswith("# "), "the file says what it measures"
    if suite == "kills":
        assert [figure["value"]["median"] for figure in facts["figures"]] == [1]


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data=transforms", "data.pairs=0"], "pairs=0: must be at least 1"),
        (["data=kills", "data.num_clips=6"], "num_clips=6: give at least one, and clips in multiples of 4"),
        (["data=resume", "data.num_shards=[3]"], "num_shards=3, num_samples=100000000"),
        (["data=loader", "data.pairs=[1]"], "data.pairs: expected int, got [1]"),
        (["data=lader"], "data=lader: no such data; did you mean 'loader'?"),
        (["output=."], ".: cannot be written; give another output"),
    ],
)
def test_mistakes_are_one_line(run, arguments, expected):
    code, out, err = run(*arguments)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""

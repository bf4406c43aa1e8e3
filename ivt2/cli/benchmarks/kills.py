"""Whether a run that is killed anywhere goes on at the very next sample."""

import multiprocessing
import os
import shutil
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, islice, repeat
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from ivt2.cli.benchmarks.timing import Figure, Quartiles
from ivt2.errors import InputError

if TYPE_CHECKING:
    from ivt2.batch import MediaTextBatch
    from ivt2.datamodules.synthetic import SyntheticDataModule

_BATCH_SIZE = 4
_NUM_FRAMES = 2
_IMAGE_SIZE = 32
_ATTEMPTS = 100  # to catch a run before it ends


class KillsSuite:
    """Runs through the embedded dataset that are ended by SIGKILL at random moments and resumed.

    A run writes a line for each clip: epoch, number, key, checksum of the pixels; and every few steps the state of the
    datamodule, as a checkpoint does. A trial passes when the lines of a killed and resumed run are those of an
    undisturbed one, in which each clip of the set occurs once in each epoch.

    Args:
        trials: runs to kill.
        num_clips: of the dataset, a multiple of 4.
        num_epochs: of a run.
        save_every: steps from one state to the next.
        num_workers: of the loader.
        seed: of the moments.
    """

    def __init__(
        self, *, trials: int, num_clips: int, num_epochs: int, save_every: int, num_workers: int, seed: int
    ) -> None:
        if trials < 1 or num_clips < 1 or num_clips % _BATCH_SIZE:
            raise InputError(
                f"trials={trials}, num_clips={num_clips}: give at least one, and clips in multiples of {_BATCH_SIZE}"
            )
        self.trials = trials
        self.num_clips = num_clips
        self.num_epochs = num_epochs
        self.save_every = save_every
        self.num_workers = num_workers
        self.seed = seed

    @property
    def turns(self) -> int:
        """How many trials there are."""
        return self.trials

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:
        """Yield one figure: how many trials passed."""
        clips, runs = folder / "kills" / f"{self.num_clips}_clips", folder / "kills" / "runs"
        self._datamodule(clips).prepare_data()
        start_s = time.perf_counter()
        whole = self._finished(clips, _emptied(runs / "whole"))
        duration_s = time.perf_counter() - start_s
        if not self._complete(whole):
            raise RuntimeError("an undisturbed run does not give each clip once an epoch")
        draws = np.random.default_rng(self.seed)
        passed, moments = 0, []
        for number in range(self.trials):
            trial = runs / f"trial_{number:03d}"
            orphans = self._killed(clips, trial, lambda: draws.uniform(0, duration_s))
            moments.append(len(_lines(trial)))
            passed += self._finished(clips, trial) == whole
            for orphan in orphans:  # workers of the killed run: they would end by themselves, but only after seconds
                with suppress(psutil.NoSuchProcess):
                    orphan.kill()
            tick()
        low, median, high = Quartiles.of([*map(float, moments)])
        yield Figure(
            what=f"killed and resumed runs of {len(whole)} clips, each as if undisturbed",
            value=Quartiles(passed, passed, passed),
            unit=f"of {self.trials}",
            floor=self.trials,
            aim=self.trials,
            details={
                "s of a whole run": duration_s,
                "clips at the kill": median,
                "lower quartile": low,
                "upper quartile": high,
            },
        )

    def _complete(self, lines: list[str]) -> bool:
        """Whether each clip occurs once in each epoch."""
        seen = Counter(tuple(line.split()[:2]) for line in lines)
        return len(seen) == len(lines) == self.num_epochs * self.num_clips

    def _killed(self, clips: Path, folder: Path, moment_s: Callable[[], float]) -> list[psutil.Process]:
        """Start a run and kill it after a while; a run that ended before is tried again with another moment.

        Returns:
            Its workers, which outlive it.
        """
        for _ in range(_ATTEMPTS):
            run = self._started(clips, _emptied(folder), quiet=True)
            time.sleep(moment_s())
            workers: list[psutil.Process] = psutil.Process(run.pid).children(recursive=True)
            run.kill()
            run.join()
            if run.exitcode == -signal.SIGKILL:
                return workers
        raise RuntimeError(f"{_ATTEMPTS} runs ended before they could be killed")

    def _finished(self, clips: Path, folder: Path) -> list[str]:
        """Run to the end, from the state that the folder holds; its lines, of earlier attempts included."""
        run = self._started(clips, folder)
        run.join()
        return _lines(folder)

    def _started(self, clips: Path, folder: Path, *, quiet: bool = False) -> BaseProcess:
        """Begin a run in a fork of this process, which has loaded all libraries."""
        target = self._train_unheard if quiet else self._train
        process = multiprocessing.get_context("fork").Process(target=target, args=(clips, folder))
        process.start()
        return process

    def _train_unheard(self, clips: Path, folder: Path) -> None:
        """Be a run that will be killed: what its orphaned workers complain of is no news."""
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
        self._train(clips, folder)

    def _train(self, clips: Path, folder: Path) -> None:
        import torch

        torch.set_num_threads(1)
        data = self._datamodule(clips)
        data.setup("fit")
        state, length = folder / "state.pt", 0
        if state.exists():
            saved = torch.load(state, weights_only=True)
            data.load_state_dict(saved["data"])
            length = saved["length"]
        loader = data.train_dataloader()
        first, num_steps = loader.state_dict()["position"], self.num_epochs * len(loader)
        batches = islice(chain.from_iterable(repeat(loader)), num_steps - first)
        with (folder / "lines.txt").open("ab") as lines:
            lines.truncate(length)  # the steps of later lines are repeated
            for step, batch in enumerate(batches, first):
                lines.write(_described(step // len(loader), batch))
                lines.flush()
                if (step + 1) % self.save_every == 0:
                    torch.save({"data": data.state_dict(), "length": lines.tell()}, folder / "state.partial")
                    (folder / "state.partial").replace(state)

    def _datamodule(self, clips: Path) -> "SyntheticDataModule":
        from ivt2.datamodules.synthetic import SyntheticDataModule

        return SyntheticDataModule(
            folder=str(clips),
            num_train=self.num_clips,
            num_val=1,
            num_test=1,
            image_size=_IMAGE_SIZE,
            num_frames=_NUM_FRAMES,
            global_batch_size=_BATCH_SIZE,
            eval_batch_size=1,
            num_workers=self.num_workers,
            progress=False,
        )


def _described(epoch: int, batch: "MediaTextBatch") -> bytes:
    clips = zip(batch["sample_id"].tolist(), batch["key"], batch["video"].contiguous().numpy(), strict=True)
    return "".join(f"{epoch} {number} {key} {zlib.crc32(video):08x}\n" for number, key, video in clips).encode()


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _lines(folder: Path) -> list[str]:
    file = folder / "lines.txt"
    return file.read_text().splitlines() if file.exists() else []

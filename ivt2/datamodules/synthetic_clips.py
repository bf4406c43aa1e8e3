"""The embedded dataset without its captions: clips to learn from, and their motions as classes to probe with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from typing_extensions import override

from ivt2.data import sampling
from ivt2.data.decode import Backend
from ivt2.data.synthetic import MOTIONS, Split
from ivt2.data.synthetic_shards import write_synthetic
from ivt2.data.transforms import Transform
from ivt2.datamodules.clips import ClipDataModule

Part = Literal["train", "probe_train", "probe_test"]


class _Clips(NamedTuple):
    split: Split
    num: int


class SyntheticClipDataModule(ClipDataModule):
    """Writes the embedded dataset where it is not there yet and streams its clips without their captions.

    Trains on the ``train`` split, whose first clips are those of ``SyntheticDataModule``. The probe ``motion``
    has the six motions as classes; it is fitted on clips of the ``val`` split and tested on clips of the ``test``
    split, and a combination of attributes occurs in one of the three only.

    Args:
        folder: where the shards go, one folder for each part.
        num_train: training clips.
        num_probe_train: clips that a probe is fitted on.
        num_probe_test: clips that it is tested on.
        image_size: side of the written frames in pixels, even; transforms may change it.
        data_seed: of the written clips; apart from ``seed``, so that a sweep over seeds shares them.
        num_frames: frames of a clip.
        train_transforms: augmentations of training clips; a flip turns motions to the left into motions to the right.
        eval_transforms: transforms of the clips of the probe.
        train_sampling: chooses training frames, called as ``(length, num_frames, generator=...)``.
        eval_sampling: chooses the frames of the probe, called as ``(length, num_frames)``.
        global_batch_size: training clips of a step, over all ranks.
        eval_batch_size: clips of a step of the probe, of each rank.
        num_workers: processes of each rank that decode, and that write where there is nothing yet.
        seed: of order and augmentations.
        decoder: library that decodes video.
        progress: show a bar while clips are written.

    Raises:
        InputError: here or from ``prepare_data``, for folders and sizes that cannot be used.
    """

    def __init__(
        self,
        *,
        folder: str,
        num_train: int = 2000,
        num_probe_train: int = 600,
        num_probe_test: int = 600,
        image_size: int = 64,
        data_seed: int = 0,
        num_frames: int,
        train_transforms: Sequence[Transform] = (),
        eval_transforms: Sequence[Transform] = (),
        train_sampling: Callable[..., Sequence[int]] = sampling.random,
        eval_sampling: Callable[..., Sequence[int]] = sampling.middle,
        global_batch_size: int,
        eval_batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        decoder: Backend = "auto",
        progress: bool = True,
    ) -> None:
        self.folders: dict[Part, str] = {part: str(Path(folder) / part) for part in get_args(Part)}
        sources = {part: {"shards": path, "classes": list(MOTIONS)} for part, path in self.folders.items()}
        super().__init__(
            train={"synthetic": sources["train"]},
            probe={"motion": {"train": sources["probe_train"], "test": sources["probe_test"]}},
            num_frames=num_frames,
            train_transforms=train_transforms,
            eval_transforms=eval_transforms,
            train_sampling=train_sampling,
            eval_sampling=eval_sampling,
            global_batch_size=global_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            decoder=decoder,
            isolate=False,  # these files were encoded here
            budget=0,
        )
        self.clips: dict[Part, _Clips] = {
            "train": _Clips("train", num_train),
            "probe_train": _Clips("val", num_probe_train),
            "probe_test": _Clips("test", num_probe_test),
        }
        self.image_size, self.data_seed, self.progress = image_size, data_seed, progress

    @override
    def prepare_data(self) -> None:
        """Write the parts that are absent or were made otherwise."""
        for part, clips in self.clips.items():
            write_synthetic(
                self.folders[part],
                split=clips.split,
                num_clips=clips.num,
                seed=self.data_seed,
                image_size=self.image_size,
                num_processes=max(1, self.num_workers),
                progress=self.progress,
            )

"""Clips without text: training batches over several sources, and labelled sets that probe what was learned."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typing_extensions import override

from ivt2.batch import ClipBatch, Medium
from ivt2.data import sampling
from ivt2.data.clips import without_flips
from ivt2.data.decode import Backend
from ivt2.data.labels import LabelReader
from ivt2.data.transforms import Transform
from ivt2.datamodules.batches import Batches, EvalBatches, TrainBatches, collate_clips
from ivt2.datamodules.loader import EvalLoader
from ivt2.datamodules.shards import ShardDataModule, Sources
from ivt2.datamodules.sources import ClipSource
from ivt2.errors import InputError

_PARTS = ("train", "test")
_WITH_PICTURES: tuple[Medium, ...] = ("video", "image")


class ClipDataModule(ShardDataModule[ClipSource]):
    """Reads shards of clips - videos or images - without their text; a step takes one source.

    Training goes through ``train`` in an order that depends on the seed alone and resumes exactly at any step, with
    other numbers of ranks and workers too. ``probe_dataloaders`` gives the labelled sets of ``probe``, of which none is
    trained on; there is nothing to validate or test otherwise. Use it with
    ``Trainer(use_distributed_sampler=False)``. A sample that cannot be used is left out of its batch, named in
    ``batch["skipped"]`` and counted in ``ledger``.

    Args:
        train: training sources: a shard folder, or the options of a ``ClipSource``, by name. Labels are not needed.
        probe: labelled sets by name, each with a source ``train`` and a source ``test``: features of the first predict
            the classes of the second.
        num_frames: frames of a video.
        train_transforms: augmentations of training clips.
        eval_transforms: transforms of the clips of a probe.
        train_sampling: chooses training frames, called as ``(length, num_frames)``, with ``generator`` if it takes one.
        eval_sampling: chooses the frames of a probe, called as ``(length, num_frames)``.
        global_batch_size: training clips of a step, over all ranks: a number, or one for each medium.
        eval_batch_size: clips of a step of a probe, of each rank.
        num_workers: processes of each rank that decode.
        seed: of order and augmentations.
        weights: share of each training source in the steps, any positive scale; None takes each source once an epoch.
        decoder: library that decodes video.
        isolate: decode in a process beside each worker, so that a crash or an endless loop in a codec library costs
            one sample (``decoder_crashed``, ``decoder_timeout``); without it the run ends.
        decoder_timeout_s: seconds that one sample may take, if isolated.
        trim: choose frames only within the annotated segment of the clip.
        budget: samples of each rank that may be unusable: a count (int) or a ratio in [0, 1] (float), or one for each
            reason that has its own and ``default`` for the others together.
        num_streams: canonical streams of the sample order.
        shuffle_buffer: samples of a stream that are shuffled together.
    """

    def __init__(
        self,
        *,
        train: Sources,
        probe: Mapping[str, Sources] | None = None,
        num_frames: int,
        train_transforms: Sequence[Transform],
        eval_transforms: Sequence[Transform],
        train_sampling: Callable[..., Sequence[int]] = sampling.random,
        eval_sampling: Callable[..., Sequence[int]] = sampling.middle,
        global_batch_size: int | Mapping[str, int],
        eval_batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        decoder: Backend = "auto",
        isolate: bool = True,
        decoder_timeout_s: float = 60.0,
        trim: bool = False,
        budget: float | int | Mapping[str, float | int] = 0.05,
        num_streams: int = 64,
        shuffle_buffer: int = 4096,
    ) -> None:
        super().__init__(
            sources={
                "train": {name: ClipSource.of(f"train.{name}", source) for name, source in train.items()},
                "probe": _probe_sources(probe or {}),
            },
            num_frames=num_frames,
            train_transforms=train_transforms,
            eval_transforms=eval_transforms,
            train_sampling=train_sampling,
            eval_sampling=eval_sampling,
            global_batch_size=global_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            weights=weights,
            decoder=decoder,
            isolate=isolate,
            decoder_timeout_s=decoder_timeout_s,
            trim=trim,
            budget=budget,
            num_streams=num_streams,
            shuffle_buffer=shuffle_buffer,
        )

    @override
    def setup(self, stage: str) -> None:
        """Open the shards of a stage; ``manifest_hash`` then names their content, ``media`` what they hold.

        Raises:
            InputError: when a folder holds no usable shards or none with pictures, or there is nothing to train on.
        """
        super().setup(stage)
        for name, medium in self.media.items():
            if medium not in _WITH_PICTURES:
                raise InputError(f"datamodule.{name}: its first samples are sounds; give shards of videos or images")

    def probe_dataloaders(self) -> dict[str, tuple[EvalLoader[ClipBatch], EvalLoader[ClipBatch]]]:
        """Return the loaders of ``train`` and ``test`` of each labelled set; they give each clip once."""
        names = dict.fromkeys(name.rpartition(".")[0] for name in self.sources["probe"])
        return {name: (self._probe(f"{name}.train"), self._probe(f"{name}.test")) for name in names}

    @override
    def _groups(self, stage: str) -> Sequence[str]:
        return ("train", "probe") if stage == "fit" else ("probe",)

    @override
    def _train_batches(self) -> Batches[ClipBatch]:
        process = self._decoder_process()
        readers = {
            name: self._reader(
                source,
                LabelReader(classes=source.classes),
                use="train",
                process=process,
                transforms=self.train_transforms if source.flip else without_flips(self.train_transforms),
                trim=source.trim,
                flip_except=source.flip_except,
            )
            for name, source in self.sources["train"].items()
        }
        return TrainBatches(readers, collate_clips, seed=self.seed)

    def _probe(self, name: str) -> EvalLoader[ClipBatch]:
        source = self.sources["probe"][name]
        labels = LabelReader(classes=source.classes, required=True)
        reader = self._reader(source, labels, use="eval", process=self._decoder_process(), trim=source.trim)
        return self._eval_loader(EvalBatches(reader, collate_clips, source=name))


def _probe_sources(probe: Mapping[str, Any]) -> dict[str, ClipSource]:
    """Sources of the labelled sets, as ``<set>.train`` and ``<set>.test``."""
    sources: dict[str, ClipSource] = {}
    for name, parts in probe.items():
        if not isinstance(parts, Mapping) or set(parts) != set(_PARTS):
            raise InputError(
                f"datamodule.probe.{name}={parts}: name the shards to fit on and those to test on, as "
                f"probe.{name}.train=<folder> and probe.{name}.test=<folder>"
            )
        sources |= {f"{name}.{part}": ClipSource.of(f"probe.{name}.{part}", parts[part]) for part in _PARTS}
    return sources

"""Media with captions: training batches over several sources, evaluation batches with every caption."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from torch import Tensor
from typing_extensions import override

from ivt2.batch import MediaTextBatch, RetrievalBatch, Vocabulary
from ivt2.data import sampling
from ivt2.data.captions import CaptionReader
from ivt2.data.decode import Backend
from ivt2.data.transforms import Transform
from ivt2.datamodules.batches import Batches, EvalBatches, MediaTextCollate, RetrievalCollate, TrainBatches
from ivt2.datamodules.caption_kinds import check_kinds
from ivt2.datamodules.loader import EvalLoader
from ivt2.datamodules.shards import ShardDataModule, Sources
from ivt2.datamodules.sources import MediaSource, sources_of


class TextTokenizer(Protocol):
    """What the datamodule asks of a tokenizer."""

    vocabulary: Vocabulary

    def __call__(self, captions: list[str], /) -> tuple[Tensor, Tensor]:
        """Return ids and validity, one row for each caption."""


class MediaTextDataModule(ShardDataModule[MediaSource]):
    """Reads shards of clips - images, videos, sounds, videos with sound - and captions; a step takes one source.

    Training goes through ``train`` in an order that depends on the seed alone and resumes exactly at any step, with
    other numbers of ranks and workers too; evaluation gives each clip of a set once. Use it with
    ``Trainer(use_distributed_sampler=False)``. A sample that cannot be used is left out of its batch, named in
    ``batch["skipped"]`` and counted in ``ledger``.

    Args:
        train: training sources: a shard folder, or the options of a ``MediaSource``, by name.
        val: validation sets, likewise.
        test: test sets, likewise; those of ``val`` when None.
        tokenizer: turns normalised captions into ids.
        num_frames: frames of a video.
        train_transforms: augmentations of training clips.
        eval_transforms: transforms of evaluation clips.
        train_sampling: chooses training frames, called as ``(length, num_frames)``, with ``generator`` if it takes one.
        eval_sampling: chooses evaluation frames, called as ``(length, num_frames)``.
        global_batch_size: training clips of a step, over all ranks: a number, or one for each medium.
        eval_batch_size: evaluation clips of a step, of each rank.
        num_workers: processes of each rank that decode.
        seed: of order and augmentations.
        weights: share of each training source in the steps, any positive scale; None takes each source once an epoch.
        train_captions: ``random`` draws one of a clip's captions, ``first`` takes the main one.
        eval_captions: rank ``all`` captions of a clip or only the ``first``.
        decoder: library that decodes video.
        isolate: decode in a process beside each worker, so that a crash or an endless loop in a codec library costs
            one sample (``decoder_crashed``, ``decoder_timeout``); without it the run ends.
        decoder_timeout_s: seconds that one sample may take, if isolated.
        trim: choose frames and sounds only within the annotated segment of the clip.
        budget: samples of each rank that may be unusable: a count (int) or a ratio in [0, 1] (float), or one for each
            reason that has its own and ``default`` for the others together.
        num_streams: canonical streams of the sample order.
        shuffle_buffer: samples of a stream that are shuffled together.
    """

    def __init__(
        self,
        *,
        train: Sources,
        val: Sources,
        test: Sources | None = None,
        tokenizer: TextTokenizer,
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
        train_captions: Literal["random", "first"] = "random",
        eval_captions: Literal["all", "first"] = "all",
        decoder: Backend = "auto",
        isolate: bool = True,
        decoder_timeout_s: float = 60.0,
        trim: bool = False,
        budget: float | int | Mapping[str, float | int] = 0.05,
        num_streams: int = 64,
        shuffle_buffer: int = 4096,
    ) -> None:
        sources = {"train": sources_of("train", train), "val": sources_of("val", val)}
        sources["test"] = sources["val"] if test is None else sources_of("test", test)
        super().__init__(
            sources=sources,
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
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.vocabulary
        self.train_captions = train_captions
        self.eval_captions = eval_captions

    @property
    def caption_kinds(self) -> dict[str, tuple[str, ...]]:
        """Kinds of captions that stand in ``texts`` of batches of each training source, by ``train.<name>``."""
        return {f"train.{name}": tuple(source.caption_kinds) for name, source in self.sources["train"].items()}

    @override
    def setup(self, stage: str) -> None:
        """Open the shards of a stage, and look whether they have the kinds of captions that are asked for.

        Raises:
            InputError: when a folder holds no usable shards, there is nothing to train on, or none of the first samples
                of a source has a kind of captions that is asked for.
        """
        super().setup(stage)
        for group in self._groups(stage):
            for name, source in self.sources[group].items():
                if source.asked_kinds:
                    check_kinds(f"datamodule.{group}.{name}", self._shards[source.shards], source.asked_kinds)

    @override
    def val_dataloader(self) -> list[EvalLoader[RetrievalBatch]]:
        """Return one loader for each validation set."""
        return [self._retrieval(name, source) for name, source in self.sources["val"].items()]

    @override
    def test_dataloader(self) -> list[EvalLoader[RetrievalBatch]]:
        """Return one loader for each test set."""
        return [self._retrieval(name, source) for name, source in self.sources["test"].items()]

    @override
    def _groups(self, stage: str) -> Sequence[str]:
        return {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))

    @override
    def _train_batches(self) -> Batches[MediaTextBatch]:
        process, sources = self._decoder_process(), self.sources["train"]
        readers = {
            name: self._reader(
                source,
                CaptionReader(min_words=source.min_words, kinds=source.caption_kinds),
                use="train",
                process=process,
                sound=source.sound_reader(crop="random"),
            )
            for name, source in sources.items()
        }
        policies = {name: source.captions or self.train_captions for name, source in sources.items()}
        collate = MediaTextCollate(
            tokenizer=self.tokenizer,
            policies={name: "first" if policy == "first" else "random" for name, policy in policies.items()},
            kinds={name: source.caption_kinds for name, source in sources.items()},
        )
        return TrainBatches(readers, collate, seed=self.seed)

    def _retrieval(self, name: str, source: MediaSource) -> EvalLoader[RetrievalBatch]:
        reader = self._reader(
            source,
            CaptionReader(min_words=source.min_words, instead=source.caption_kind),
            use="eval",
            process=self._decoder_process(),
            sound=source.sound_reader(crop="middle"),
        )
        captions: Literal["all", "first"] = "first" if (source.captions or self.eval_captions) == "first" else "all"
        collate = RetrievalCollate(tokenizer=self.tokenizer, captions=captions)
        return self._eval_loader(EvalBatches(reader, collate, source=name))

"""Media with captions: training batches over several sources, evaluation batches with every caption."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypedDict, get_args

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ivt2.batch import Medium, Vocabulary
from ivt2.data import sampling
from ivt2.data.clips import ClipReader, medium_of
from ivt2.data.decode import Backend
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import Ledger
from ivt2.data.mixing import Mixture
from ivt2.data.order import SampleOrder
from ivt2.data.shards import ShardSet
from ivt2.data.transforms import Transform
from ivt2.datamodules.batches import EvalBatches, TrainBatches, TrainSource
from ivt2.datamodules.loader import EvalLoader, LoaderState, TrainLoader
from ivt2.datamodules.sources import MediaSource, sources_of
from ivt2.errors import InputError


class TextTokenizer(Protocol):
    """What the datamodule asks of a tokenizer."""

    vocabulary: Vocabulary

    def __call__(self, captions: list[str], /) -> tuple[Tensor, Tensor]:
        """Return ids and validity, one row for each caption."""


class _State(TypedDict):
    loader: LoaderState
    ledger: dict[str, Any]


class MediaTextDataModule(pl.LightningDataModule):
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
        train: Mapping[str, str | Mapping[str, Any]],
        val: Mapping[str, str | Mapping[str, Any]],
        test: Mapping[str, str | Mapping[str, Any]] | None = None,
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
        super().__init__()
        for name, value in (
            ("num_frames", num_frames),
            *_sizes(global_batch_size).items(),
            ("eval_batch_size", eval_batch_size),
            ("num_streams", num_streams),
            ("shuffle_buffer", shuffle_buffer),
        ):
            if value < 1:
                raise InputError(f"{name}={value}: must be at least 1")
        if weights is not None and set(weights) != set(train):
            raise InputError(f"weights of {sorted(weights)}: give one for each training source, {sorted(train)}")
        self.sources = {"train": sources_of("train", train), "val": sources_of("val", val)}
        self.sources["test"] = self.sources["val"] if test is None else sources_of("test", test)
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.vocabulary
        self.num_frames = num_frames
        self.train_transforms = list(train_transforms)
        self.eval_transforms = list(eval_transforms)
        self.train_sampling = train_sampling
        self.eval_sampling = eval_sampling
        self.global_batch_size = global_batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.weights = None if weights is None else [weights[name] for name in train]
        self.train_captions = train_captions
        self.eval_captions = eval_captions
        self.decoder = decoder
        self.isolate = isolate
        self.decoder_timeout_s = decoder_timeout_s
        self.trim = trim
        self.num_streams = num_streams
        self.shuffle_buffer = shuffle_buffer
        self.ledger = Ledger(budget)
        self.manifest_hash = ""
        self.media: dict[str, Medium] = {}
        self._shards: dict[str, ShardSet] = {}
        self._train_loader: TrainLoader | None = None
        self._resume: LoaderState | None = None

    @override
    def setup(self, stage: str) -> None:
        """Open the shards of a stage; ``manifest_hash`` then names their content, ``media`` what they hold.

        Raises:
            InputError: when a folder holds no usable shards or there is nothing to train on.
        """
        groups = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ("test",))
        if "train" in groups:
            if not self.sources["train"]:
                raise InputError("datamodule.train is empty: name a shard folder, as train.<name>=<folder>")
            self._train_loader = self._resume = None
        sources = {f"{group}.{name}": each for group in groups for name, each in self.sources[group].items()}
        for source in sources.values():
            if source.shards not in self._shards:
                self._shards[source.shards] = ShardSet.open(source.shards)
        self.media = {name: source.medium or medium_of(self._shards[source.shards]) for name, source in sources.items()}
        hashes = [self._shards[source.shards].manifest_hash for source in sources.values()]
        self.manifest_hash = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
        budgeted = self.sources["train" if "train" in groups else groups[0]].values()
        num_samples = sum(len(self._shards[source.shards]) for source in budgeted)
        self.ledger.num_samples = num_samples // self._rank_and_world()[1]

    @override
    def train_dataloader(self) -> TrainLoader:
        """Return the training loader, standing where training stands."""
        rule = _choose_randomly if "generator" in inspect.signature(self.train_sampling).parameters else _choose
        choose = partial(rule, self.train_sampling, self.num_frames)
        process = self._decoder_process()
        sources = {
            name: TrainSource(
                reader=self._reader(source, choose, self.train_transforms, process, crop="random"),
                captions="first" if (source.captions or self.train_captions) == "first" else "random",
            )
            for name, source in self.sources["train"].items()
        }
        rank, world = self._rank_and_world()
        steps_per_iteration, repeat = self._iteration(plan := self._plan())
        loader = TrainLoader(
            TrainBatches(sources, self.tokenizer, seed=self.seed),
            plan,
            fingerprint=self._fingerprint(plan),
            rank=rank,
            world=world,
            num_workers=self.num_workers,
            ledger=self.ledger,
            steps_per_iteration=steps_per_iteration,
            repeat=repeat,
            pin_memory=self._on_gpu(),
        )
        standing = self._resume if self._train_loader is None else self._train_loader.state_dict()
        if standing is not None:
            loader.load_state_dict(standing)
        self._train_loader = loader
        return loader

    @override
    def val_dataloader(self) -> list[EvalLoader]:
        """Return one loader for each validation set."""
        return self._eval_loaders("val")

    @override
    def test_dataloader(self) -> list[EvalLoader]:
        """Return one loader for each test set."""
        return self._eval_loaders("test")

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return position and ledger of all ranks; every rank must call, as they do to save a checkpoint.

        Lightning itself drops a loader's state when a checkpoint was written at the end of an epoch, so it is here.
        """
        if self._train_loader is None:
            return {}
        total = Ledger(1.0)
        for account in _gathered(self.ledger.state_dict()):
            total.merge(account)
        return dict(_State(loader=self._train_loader.state_dict(), ledger=total.state_dict()))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint when training; the counts of all ranks go on in rank 0."""
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        self._resume = state_dict["loader"]
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict["loader"])
        account = state_dict["ledger"] if self._rank_and_world()[0] == 0 else Ledger(1.0).state_dict()
        self.ledger.load_state_dict(account)

    def _training_shards(self) -> list[ShardSet]:
        return [self._shards[source.shards] for source in self.sources["train"].values()]

    def _plan(self) -> Mixture:
        orders = [
            SampleOrder(
                shards.samples_per_shard,
                seed=self.seed + number,
                num_streams=self.num_streams,
                shuffle_buffer=self.shuffle_buffer,
            )
            for number, shards in enumerate(self._training_shards())
        ]
        sizes = [self._batch_size(name) for name in self.sources["train"]]
        return Mixture(orders, global_batch_size=sizes, seed=self.seed, weights=self.weights)

    def _batch_size(self, name: str) -> int:
        if isinstance(self.global_batch_size, int):
            return self.global_batch_size
        medium = self.media[f"train.{name}"]
        if medium not in self.global_batch_size:
            raise InputError(
                f"global_batch_size={dict(self.global_batch_size)}: says nothing of {medium}, which train.{name} "
                f"holds; add global_batch_size.{medium}=..."
            )
        return self.global_batch_size[medium]

    def _fingerprint(self, plan: Mixture) -> str:
        sizes = plan.batch_sizes
        facts = [
            *(shards.manifest_hash for shards in self._training_shards()),
            self.seed,
            sizes[0] if len(set(sizes)) == 1 else sizes,
            self.num_streams,
            self.shuffle_buffer,
            self.weights,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _eval_loaders(self, group: str) -> list[EvalLoader]:
        rank, world = self._rank_and_world()
        choose = partial(_choose, self.eval_sampling, self.num_frames)
        return [
            EvalLoader(
                EvalBatches(
                    self._reader(source, choose, self.eval_transforms, self._decoder_process(), crop="middle"),
                    self.tokenizer,
                    source=name,
                    captions="first" if (source.captions or self.eval_captions) == "first" else "all",
                ),
                batch_size=self.eval_batch_size,
                rank=rank,
                world=world,
                num_workers=self.num_workers,
                ledger=self.ledger,
                pin_memory=self._on_gpu(),
            )
            for name, source in self.sources[group].items()
        ]

    def _reader(
        self,
        source: MediaSource,
        choose: Callable[[int, np.random.Generator], Sequence[int]],
        transforms: Sequence[Transform],
        process: DecoderProcess | None,
        *,
        crop: Literal["random", "middle"],
    ) -> ClipReader:
        return ClipReader(
            self._shards[source.shards],
            choose=choose,
            num_frames=self.num_frames,
            transforms=transforms,
            decoder=self.decoder,
            trim=self.trim,
            process=process,
            medium=source.medium,
            sound=source.sound_reader(crop=crop),
            min_words=source.min_words,
            caption_kinds=source.caption_kinds,
        )

    def _decoder_process(self) -> DecoderProcess | None:
        return DecoderProcess(timeout_s=self.decoder_timeout_s) if self.isolate else None

    def _rank_and_world(self) -> tuple[int, int]:
        """This process among those that share the data, which a tensor-parallel mesh makes fewer than all."""
        shares = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return (0, 1) if shares is None else (int(shares["rank"]), int(shares["num_replicas"]))

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _iteration(self, plan: Mixture) -> tuple[int, bool]:
        """Steps that Lightning takes before it asks for a new iterator, and whether they are to be repeated."""
        if self.trainer is None:
            return plan.steps_per_epoch, False
        limit: float = self.trainer.limit_train_batches
        steps = limit if isinstance(limit, int) else int(limit * plan.steps_per_epoch)
        return max(int(steps), 1), self.trainer.overfit_batches > 0  # type: ignore[attr-defined]


def _sizes(global_batch_size: int | Mapping[str, int]) -> dict[str, int]:
    """Batch sizes by the name of their option."""
    if isinstance(global_batch_size, int):
        return {"global_batch_size": global_batch_size}
    if unknown := sorted(set(global_batch_size) - set(get_args(Medium))):
        raise InputError(f"global_batch_size.{unknown[0]}: is no medium; give a size for {', '.join(get_args(Medium))}")
    return {f"global_batch_size.{medium}": size for medium, size in global_batch_size.items()}


def _choose_randomly(
    rule: Callable[..., Sequence[int]], num_frames: int, length: int, generator: np.random.Generator
) -> Sequence[int]:
    return rule(length, num_frames, generator=generator)


def _choose(
    rule: Callable[..., Sequence[int]],
    num_frames: int,
    length: int,
    generator: np.random.Generator,  # noqa: ARG001
) -> Sequence[int]:
    return rule(length, num_frames)


def _gathered(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The value of every rank, on every rank."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values

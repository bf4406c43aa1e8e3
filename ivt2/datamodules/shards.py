"""What datamodules of shards have in common: order, mixture, ledger, resume, and readers of their sources."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Literal, TypedDict, TypeVar, get_args

import lightning.pytorch as pl
import numpy as np
from typing_extensions import override

from ivt2.batch import Medium
from ivt2.data.clips import ClipReader, Content, medium_of
from ivt2.data.decode import Backend
from ivt2.data.isolation import DecoderProcess
from ivt2.data.ledger import Ledger
from ivt2.data.mixing import Mixture
from ivt2.data.order import SampleOrder
from ivt2.data.shards import ShardSet
from ivt2.data.sound import SoundReader
from ivt2.data.transforms import Transform
from ivt2.datamodules.batches import Batch, Batches, EvalBatches
from ivt2.datamodules.loader import EvalLoader, LoaderState, TrainLoader
from ivt2.datamodules.sources import ShardSource
from ivt2.errors import InputError
from ivt2.ops.distributed import gather_objects

Source = TypeVar("Source", bound=ShardSource)
Sources = Mapping[str, str | Mapping[str, Any]]
"""Sources as a configuration gives them: a shard folder, or options, by name."""


class _State(TypedDict):
    loader: LoaderState
    ledger: dict[str, Any]


class ShardDataModule(pl.LightningDataModule, Generic[Source]):
    """Reads shards of clips; what a batch holds of them is up to the subclass.

    Training goes through the sources ``train`` in an order that depends on the seed alone and resumes exactly at any
    step, with other numbers of ranks and workers too; an evaluation set gives each clip once. Use it with
    ``Trainer(use_distributed_sampler=False)``. A sample that cannot be used is left out of its batch, named in
    ``batch["skipped"]`` and counted in ``ledger``.

    Args:
        sources: by group, then by name; the group ``train`` is trained on.
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
        decoder: library that decodes video.
        isolate: decode in a process beside each worker.
        decoder_timeout_s: seconds that one sample may take, if isolated.
        trim: choose frames and sounds only within the annotated segment of the clip.
        budget: samples of each rank that may be unusable (see ``Ledger``).
        num_streams: canonical streams of the sample order.
        shuffle_buffer: samples of a stream that are shuffled together.
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, Mapping[str, Source]],
        num_frames: int,
        train_transforms: Sequence[Transform],
        eval_transforms: Sequence[Transform],
        train_sampling: Callable[..., Sequence[int]],
        eval_sampling: Callable[..., Sequence[int]],
        global_batch_size: int | Mapping[str, int],
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        weights: Mapping[str, float] | None,
        decoder: Backend,
        isolate: bool,
        decoder_timeout_s: float,
        trim: bool,
        budget: float | int | Mapping[str, float | int],
        num_streams: int,
        shuffle_buffer: int,
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
        train = sources["train"]
        if weights is not None and set(weights) != set(train):
            raise InputError(f"weights of {sorted(weights)}: give one for each training source, {sorted(train)}")
        self.sources = {group: dict(named) for group, named in sources.items()}
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
        self._found_media: dict[str, Medium] = {}
        self._train_loader: TrainLoader[Any] | None = None
        self._resume: LoaderState | None = None

    @override
    def setup(self, stage: str) -> None:
        """Open the shards of a stage; ``manifest_hash`` then names their content, ``media`` what they hold.

        Raises:
            InputError: when a folder holds no usable shards or there is nothing to train on.
        """
        groups = self._groups(stage)
        if "train" in groups:
            if not self.sources["train"]:
                raise InputError("datamodule.train is empty: name a shard folder, as train.<name>=<folder>")
            self._train_loader = self._resume = None
        sources = {f"{group}.{name}": each for group in groups for name, each in self.sources[group].items()}
        for source in sources.values():
            if source.shards not in self._shards:
                self._shards[source.shards] = ShardSet.open(source.shards)
        self.media = {name: self._medium(source) for name, source in sources.items()}
        hashes = [self._shards[source.shards].manifest_hash for source in sources.values()]
        self.manifest_hash = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
        num_samples = sum(len(self._shards[source.shards]) for source in self.sources[groups[0]].values())
        self.ledger.num_samples = num_samples // self._rank_and_world()[1]

    @override
    def train_dataloader(self) -> TrainLoader[Any]:
        """Return the training loader, standing where training stands."""
        rank, world = self._rank_and_world()
        steps_per_iteration, repeat = self._iteration(plan := self._plan())
        loader = TrainLoader(
            self._train_batches(),
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
    def state_dict(self) -> dict[str, Any]:
        """Return position and ledger of all ranks; every rank must call, as they do to save a checkpoint.

        Lightning itself drops a loader's state when a checkpoint was written at the end of an epoch, so it is here.
        """
        if self._train_loader is None:
            return {}
        total = Ledger(1.0)
        for account in gather_objects(self.ledger.state_dict()):
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

    def _groups(self, stage: str) -> Sequence[str]:
        """Groups of sources that a stage reads; the budget is a share of the first."""
        raise NotImplementedError

    def _train_batches(self) -> Batches[Any]:
        """Make the training batches."""
        raise NotImplementedError

    def _reader(
        self,
        source: Source,
        content: Callable[[Mapping[str, bytes]], Content],
        *,
        use: Literal["train", "eval"],
        process: DecoderProcess | None,
        transforms: Sequence[Transform] | None = None,
        trim: bool | None = None,
        sound: SoundReader | None = None,
        flip_except: Sequence[str] = (),
    ) -> ClipReader[Content]:
        """Reader of a source; transforms and trimming are those of the datamodule unless they are given."""
        if use == "train":
            draws = "generator" in inspect.signature(self.train_sampling).parameters
            choose = partial(_choose_randomly if draws else _choose, self.train_sampling, self.num_frames)
        else:
            choose = partial(_choose, self.eval_sampling, self.num_frames)
        usual = self.train_transforms if use == "train" else self.eval_transforms
        return ClipReader(
            self._shards[source.shards],
            content=content,
            choose=choose,
            num_frames=self.num_frames,
            transforms=usual if transforms is None else transforms,
            decoder=self.decoder,
            trim=self.trim if trim is None else trim,
            process=process,
            medium=self._medium(source),
            sound=sound,
            flip_except=flip_except,
        )

    def _eval_loader(self, batches: EvalBatches[Any, Batch]) -> EvalLoader[Batch]:
        rank, world = self._rank_and_world()
        return EvalLoader(
            batches,
            batch_size=self.eval_batch_size,
            rank=rank,
            world=world,
            num_workers=self.num_workers,
            ledger=self.ledger,
            pin_memory=self._on_gpu(),
        )

    def _decoder_process(self) -> DecoderProcess | None:
        return DecoderProcess(timeout_s=self.decoder_timeout_s) if self.isolate else None

    def _medium(self, source: Source) -> Medium:
        """What a source holds; looked up here, once, and not again by the workers."""
        if source.medium is not None:
            return source.medium
        if source.shards not in self._found_media:
            self._found_media[source.shards] = medium_of(self._shards[source.shards])
        return self._found_media[source.shards]

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

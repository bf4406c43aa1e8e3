"""Whether learning works, told while it goes on: simple classifiers on the features of held-out labelled clips."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from ivt2.batch import ClipBatch
from ivt2.callbacks.drawing import draw_curves, draw_layers
from ivt2.callbacks.ema import averages_in_place
from ivt2.callbacks.random_state import capture, restore
from ivt2.callbacks.throughput import Throughput
from ivt2.callbacks.tracking import safe_name, save_figure
from ivt2.errors import InputError
from ivt2.metrics.probing import LabelledFeatures, probe_metrics
from ivt2.ops.distributed import all_gather

Encode: TypeAlias = Callable[[Tensor], Tensor]
"""Pooled features [B, D] of clips [B, T, C, H, W]."""
ClipLoader: TypeAlias = Iterable[ClipBatch]

_PANELS = {
    "accuracy (%)": ("knn_top1", "linear_top1"),
    "effective rank": ("effective_rank",),
    "mean cosine": ("mean_cosine",),
}
_COSINE = re.compile(r"train/(?P<student>.+/)?cosine_(?P<layer>.+)")


class ProbeDataModule(Protocol):
    """What the monitor asks of a datamodule."""

    def probe_dataloaders(self) -> Mapping[str, tuple[ClipLoader, ClipLoader]]:
        """Clips to learn from and clips to judge by, of each labelled set.

        On several ranks each gets its own part, in as many batches as any other; a batch may hold no clips.
        """


class Probe(Callback):
    """Probes frozen features before the first step, every n steps and at the end of the fit.

    For each set in ``datamodule.probe_dataloaders()`` all clips are encoded by ``pl_module.encode`` in evaluation mode,
    and `ivt2.metrics.probing` judges the features: those of the averaged weights, where ``callbacks.ema`` evaluates
    with them. Logged, and ready to be monitored by a checkpoint:
    ``probe/<set>/knn_top1`` and ``linear_top1`` (percent), ``effective_rank``, ``mean_cosine``, and
    ``linear_top1_gain`` (points above the features before the first step). A module with several students
    (``pl_module.named_students()``) has ``probe/<set>/<student>/...`` for each, from one reading of the clips.

    Draws ``figures/probe/<set>``, and ``figures/cosines`` of whatever is logged as ``train/cosine_<teacher>/<layer>``,
    to the MLflow run or to ``<folder>`` where there is none. What was measured goes on in a resumed run.

    Training does not notice: weights, modes of modules and random generators are afterwards what they were before.
    List it after ``Throughput``, so that its time is not taken for waiting, and after ``Preemption``.

    Args:
        folder: Folder of the run.
        every_n_steps: Optimizer steps between two probes.
        k: Neighbours that vote in ``knn_top1``.
        temperature: The smaller, the more the nearest neighbours count.

    Raises:
        InputError: an argument is out of range; when fitting, where module or datamodule cannot be probed or no clip
            of a set can be used.
    """

    def __init__(
        self, folder: str | Path, *, every_n_steps: int = 1000, k: int = 20, temperature: float = 0.07
    ) -> None:
        for name, value, least in (("every_n_steps", every_n_steps, 1), ("k", k, 1)):
            if value < least:
                raise InputError(f"callbacks.probe.{name}={value}: must be at least {least}")
        if temperature <= 0:
            raise InputError(f"callbacks.probe.temperature={temperature}: must be above 0")
        self.folder = Path(folder) / "figures"
        self.every_n_steps = every_n_steps
        self.k = k
        self.temperature = temperature
        self._probed_step = -1
        self._curves: dict[str, list[tuple[int, float]]] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be probed, before anything is trained."""
        if stage != "fit":
            return
        self._probed_step, self._curves = -1, {}
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        for part, method in ((datamodule, "probe_dataloaders"), (pl_module, "encode")):
            if not callable(getattr(part, method, None)):
                remedy = "choose another, or drop the probe with callbacks.probe=null"
                raise InputError(f"callbacks.probe: {type(part).__name__} has no {method}(); {remedy}")

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return all that was measured."""
        return {"step": self._probed_step, "curves": {name: list(curve) for name, curve in self._curves.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was measured."""
        self._probed_step = int(state_dict["step"])
        self._curves = {
            name: [(int(step), value) for step, value in curve] for name, curve in state_dict["curves"].items()
        }

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe what has not learned yet, or what a run that was stopped did not come to probe."""
        self._probe_if_due(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Probe every n steps."""
        self._probe_if_due(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe what was learned."""
        if trainer.global_step != self._probed_step:
            self._probe(trainer, pl_module)

    def _probe_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._probed_step:
            self._probe(trainer, pl_module)

    def _probe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = self._probed_step = trainer.global_step
        values: dict[str, float] = {}
        with _undisturbed(pl_module), averages_in_place(trainer, pl_module):
            sets = cast("ProbeDataModule", trainer.datamodule).probe_dataloaders()  # type: ignore[attr-defined]
            for name, loaders in sets.items():
                values |= self._judge(trainer, pl_module, name, loaders)
        if not values:
            rank_zero_warn("callbacks.probe: the datamodule names no labelled sets, so nothing is probed")
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        device = trainer.strategy.root_device
        trainer.callback_metrics.update({name: torch.tensor(value, device=device) for name, value in values.items()})
        cosines = {name: float(value) for name, value in trainer.callback_metrics.items() if _COSINE.fullmatch(name)}
        for name, value in (values | cosines).items():
            self._curves.setdefault(name, []).append((step, value))
        if trainer.is_global_zero:
            self._draw(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.pause()

    def _judge(
        self, trainer: Trainer, pl_module: LightningModule, name: str, loaders: tuple[ClipLoader, ClipLoader]
    ) -> dict[str, float]:
        """What is logged of one set; the first rank computes it for all."""
        encoders = _encoders(pl_module)
        train, test = (_encoded(trainer, encoders, loader) for loader in loaders)
        for part, clips in (("train", train), ("test", test)):
            if any(len(each.labels) == 0 for each in clips.values()):
                reason = "no clip could be read, or none has a label"
                raise InputError(f"datamodule.probe.{name}.{part}: {reason}; see the table of skipped samples")
        values: dict[str, float] = {}
        for student in encoders if trainer.is_global_zero else ():
            found = probe_metrics(train[student], test[student], k=self.k, temperature=self.temperature)
            prefix = "/".join(["probe", *map(safe_name, filter(None, (name, student)))])
            values |= {f"{prefix}/{metric}": value for metric, value in found.items()}
            curve = self._curves.get(f"{prefix}/linear_top1", [(trainer.global_step, found["linear_top1"])])
            first_step, first_value = curve[0]
            if first_step == 0:
                values[f"{prefix}/linear_top1_gain"] = found["linear_top1"] - first_value
        return trainer.strategy.broadcast(values)

    def _draw(self, trainer: Trainer) -> None:
        sets = sorted({name.split("/")[1] for name in self._curves if name.startswith("probe/")})
        for name in sets:
            own = {
                key.removeprefix(f"probe/{name}/"): curve
                for key, curve in self._curves.items()
                if key.startswith(f"probe/{name}/")
            }
            panels = {
                label: {key: curve for key, curve in own.items() if key.rsplit("/", 1)[-1] in metrics}
                for label, metrics in _PANELS.items()
            }
            save_figure(trainer, self.folder, f"probe/{name}", draw_curves(f"probe of {name}", panels))
        layers = {name: match for name in self._curves if (match := _COSINE.fullmatch(name))}
        if layers:
            rows = {f"{match['student'] or ''}{match['layer']}": self._curves[name] for name, match in layers.items()}
            save_figure(trainer, self.folder, "cosines", draw_layers("cosine with the teachers", rows))


@contextmanager
def _undisturbed(pl_module: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random generators are put back."""
    state, modes = capture(), [(module, module.training) for module in pl_module.modules()]
    pl_module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        restore(state)


def _encoders(pl_module: LightningModule) -> dict[str, Encode]:
    """How to encode, for each of several students by name; the name of an only one is empty."""
    named_students = getattr(pl_module, "named_students", None)
    names = [""] if named_students is None else list(named_students())
    encode = cast("Callable[..., Tensor]", pl_module.encode)
    return {name: partial(encode, student=name) if name else encode for name in names}


def _encoded(trainer: Trainer, encoders: Mapping[str, Encode], loader: ClipLoader) -> dict[str, LabelledFeatures]:
    """Features of the labelled clips of all ranks by each encoder, each clip once, in the order of the set."""
    features: dict[str, list[Tensor]] = {name: [] for name in encoders}
    labels: list[int] = []
    sample_id: list[int] = []
    for batch in loader:
        video = batch["video"].to(trainer.strategy.root_device, non_blocking=True)
        with trainer.precision_plugin.val_step_context():
            for name, encode in encoders.items():
                features[name].append(encode(video).float().cpu())
        # Numbers, because tensors of a worker would keep its shared memory open to the end.
        labels += batch["label"].tolist()
        sample_id += batch["sample_id"].tolist()
    label, place = (all_gather(torch.tensor(values, dtype=torch.int64)) for values in (labels, sample_id))
    order = _first_of_each(place)
    kept = order[label[order] >= 0]
    return {name: LabelledFeatures(_gathered(parts)[kept], label[kept]) for name, parts in features.items()}


def _gathered(parts: list[Tensor]) -> Tensor:
    """Features of all ranks; a rank without clips takes the width from the others."""
    width = int(all_gather(torch.tensor([parts[0].shape[1] if parts else 0])).max())
    return all_gather(torch.cat([torch.zeros(0, width), *parts]))


def _first_of_each(numbers: Tensor) -> Tensor:
    """Where each distinct number first occurs, by increasing number."""
    order = numbers.argsort(stable=True)
    ordered = numbers[order]
    return order[torch.cat([torch.ones_like(ordered[:1], dtype=torch.bool), ordered[1:] != ordered[:-1]])]

"""Start weights: parts of a network filled from converted releases or from runs, strictly."""

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ivt2.checkpoint.difference import describe_difference
from ivt2.checkpoint.folder import CONFIG, FORMAT, STATE, read_weights
from ivt2.checkpoint.keymaps.keymap import TensorFacts, tensor_facts
from ivt2.checkpoint.released import ReleasedFolder, resize_table
from ivt2.checkpoint.weights import fill, find_weights
from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.nn.aligning import AligningDecoders

WHOLE = "model"
"""Name for the whole network among the parts."""

_TABLES = ("pos_embed", "pos_embed_spatial", "pos_embed_temporal", "img_pos_embed")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialWeights:
    """Where the start weights of a part come from.

    Patterns are names of the part with ``*`` for any letters, as ``layers.*.cross_attention.*``; each of them must be
    true of some tensor.
    """

    weights: str | None
    """Folder that ``python -m ivt2.cli.convert`` wrote, a checkpoint of ``train.py``, or the folder of a run, whose
    newest checkpoint that verifies is taken; None leaves the part as it is."""
    prefix: str = ""
    """Where the part stands in it: ``vision_encoder.`` of stage 2, ``student.encoder.`` of a run of stage 1."""
    missing: Sequence[str] = ()
    """Tensors that the file lacks and that keep the start that they have."""
    unused: Sequence[str] = ()
    """Tensors of the file that the part has no use for."""


def load_initial(model: nn.Module, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Fill parts of a network: all their weights and buffers, from files that hold exactly these.

    Learned position tables are resized to the frames and the grid of the part, in float32, over time first and then in
    space. The log says what was filled from where, and what of the network keeps a random start.

    Args:
        model: the network, in memory; dtypes stay.
        parts: by the name of a submodule, such as ``vision_encoder``, or ``model`` for all of it, the fields of
            :class:`InitialWeights`. They are filled in this order, so a later one may replace a part of an earlier one.

    Raises:
        InputError: The network has no such part; a folder is missing or damaged; tensors are missing, unexpected or of
            another shape, and not named as such. Nothing was loaded then.
    """
    wanted = {part: (_part(model, part), _options(part, options)) for part, options in parts.items()}
    sources = [
        _open(network, part, options, Path(options.weights))
        for part, (network, options) in wanted.items()
        if options.weights is not None
    ]
    for source in sources:
        fill(source.network, source.values())
        what = f" (start kept: {', '.join(source.kept)})" if source.kept else ""
        _LOG.info("start weights: %s from %s%s", source.part, source.path, what)
    rest = _untouched(model, [source.part for source in sources])
    if parts and rest:
        _LOG.info("start weights: at random are %s", ", ".join(rest))


@dataclass(frozen=True)
class _Stored:
    """Tensors in a file, under the names that follow the prefix."""

    facts: Mapping[str, TensorFacts]
    read: Callable[[], Iterable[tuple[str, Tensor]]]
    frames: Mapping[str, int]
    """Temporal positions of the tables that can be resized, by name."""


@dataclass(frozen=True)
class _Source:
    """A part with the file that fills it, compared but not yet read."""

    part: str
    path: Path
    network: nn.Module
    stored: _Stored
    resized: frozenset[str]
    kept: tuple[str, ...]

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """What the part gets."""
        targets = self.network.state_dict()
        for name, value in self.stored.read():
            if name in self.resized:
                yield name, _resize(self.network, self.stored, name, value.float(), targets[name])
            elif name in targets:
                yield name, value


def _open(network: nn.Module, part: str, wanted: InitialWeights, weights: Path) -> _Source:
    path = find_weights(weights.expanduser(), what=f"initial.{part}.weights")
    stored = _of_run(network, path, wanted.prefix) if (path / STATE).is_file() else _of_release(path, wanted.prefix)
    if not stored.facts:
        raise InputError(f"initial.{part}.prefix={wanted.prefix!r}: no tensor of {path} has a name that begins so")
    kept = _compare(part, path, wanted, stored, tensor_facts(network.state_dict()))
    targets = network.state_dict()
    resized = frozenset(
        name
        for name, frames in stored.frames.items()
        if name in targets
        and (stored.facts[name].shape != tuple(targets[name].shape) or frames != _frames(network, name, frames))
    )
    for name in resized:  # so that a table that cannot be resized is known before anything is loaded
        _resize(network, stored, name, torch.empty(stored.facts[name].shape, device="meta"), targets[name])
    return _Source(part, path, network, stored, resized, tuple(kept))


def _part(model: nn.Module, part: str) -> nn.Module:
    if part == WHOLE:
        return model
    names = [name for name, _ in model.named_modules() if name]
    if part in names:
        return model.get_submodule(part)
    near = difflib.get_close_matches(part, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"its parts are {', '.join(_children(model))}"
    raise InputError(f"initial: the model has no part named {part!r}; {hint} ({WHOLE} is all of it)")


def _options(part: str, options: Mapping[str, Any]) -> InitialWeights:
    known = [field.name for field in fields(InitialWeights)]
    unknown = [key for key in options if key not in known]
    if unknown or "weights" not in options:
        wrong = f"{unknown[0]!r} is no option" if unknown else "weights is not given"
        raise InputError(f"initial.{part}: {wrong}; it takes {', '.join(known)}")
    return InitialWeights(**options)


def _of_release(path: Path, prefix: str) -> _Stored:
    opened = ReleasedFolder.open(path).part(prefix)
    return _Stored(
        opened.tensors, opened.read, dict.fromkeys(opened.facts.position_tables, opened.facts.num_frames)
    )  # fmt: skip


def _of_run(network: nn.Module, path: Path, prefix: str) -> _Stored:
    """Weights of a checkpoint; its configuration says how many frames the tables of its encoders have."""
    weights = {
        name.removeprefix(prefix): value for name, value in read_weights(path).items() if name.startswith(prefix)
    }
    config = _config(path)
    frames: dict[str, int] = {}
    for owner, module in network.named_modules():
        num_frames = _described(config, prefix + owner) if isinstance(module, InternVideo2) else None
        if num_frames is not None:
            names = (f"{owner}.{leaf}".removeprefix(".") for leaf in _TABLES)
            frames |= dict.fromkeys((name for name in names if name in weights), num_frames)
    return _Stored(tensor_facts(weights), weights.items, frames)


def _config(path: Path) -> Any:
    entries = FORMAT.entries(path)
    if CONFIG not in entries:
        return None
    FORMAT.verify_file(path / CONFIG, entries[CONFIG])
    return FORMAT.read_json(path / CONFIG)


def _described(config: Any, where: str) -> int | None:
    """Temporal positions of the encoder that stands there in a run's configuration, which is data alone."""
    for key in ["module", *(key for key in where.split(".") if key)]:
        config = config.get(key) if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping):
        return None
    frames, tubelet = config.get("num_frames"), config.get("tubelet_size", 1)
    both = type(frames) is int and type(tubelet) is int and 0 < tubelet <= frames
    return frames // tubelet if both else None


def _compare(
    part: str, path: Path, wanted: InitialWeights, stored: _Stored, here: Mapping[str, TensorFacts]
) -> list[str]:
    """Names that keep their start, after everything else was found to fit.

    Raises:
        InputError: Something does not, or a pattern is not true of anything.
    """
    lacking = [name for name in here if name not in stored.facts]
    surplus = [name for name in stored.facts if name not in here]
    for option, patterns, names in (("missing", wanted.missing, lacking), ("unused", wanted.unused, surplus)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                what = "the part has and the file lacks" if option == "missing" else "the file has and the part lacks"
                raise InputError(f"initial.{part}.{option}: {pattern!r} is nothing that {what} ({path}); take it out")
    missing = [name for name in lacking if not _named(name, wanted.missing)]
    unexpected = [name for name in surplus if not _named(name, wanted.unused)]
    mismatched = [
        f"{name} {list(found.shape)} {found.dtype} here {list(facts.shape)} {facts.dtype}"
        for name, facts in here.items()
        if name in stored.facts and not _fits(found := stored.facts[name], facts, table=name in stored.frames)
    ]
    if missing or unexpected or mismatched:
        raise InputError(
            f"initial.{part}: {path} does not fit: {describe_difference(missing, unexpected, mismatched)}; build the "
            "network that it was made for, or list what shall keep its start in missing and what it has too much in "
            "unused"
        )
    return [name for name in lacking if _named(name, wanted.missing)]


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _fits(stored: TensorFacts, here: TensorFacts, *, table: bool) -> bool:
    """Numbers of one kind in one shape, or two tables that differ in their rows alone."""
    rows_alone = table and len(stored.shape) == len(here.shape) == 3 and stored.shape[::2] == here.shape[::2]
    return (stored.shape == here.shape or rows_alone) and (
        stored.dtype.is_floating_point == here.dtype.is_floating_point
    )


def _frames(network: nn.Module, name: str, otherwise: int) -> int:
    """Temporal positions of the table that has this name in the network."""
    owner = network.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, InternVideo2):
        return owner.grid_frames
    return owner.num_frames if isinstance(owner, AligningDecoders) else otherwise


def _resize(network: nn.Module, stored: _Stored, name: str, table: Tensor, target: Tensor) -> Tensor:
    source_frames = stored.frames[name]
    return resize_table(
        name,
        table,
        tuple(target.shape),
        source_frames=source_frames,
        num_frames=_frames(network, name, source_frames),
    )


def _children(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_children()]


def _untouched(model: nn.Module, parts: Iterable[str]) -> list[str]:
    """Submodules and parameters of the network itself that no part holds or is held by."""
    own = [name for name, _ in model.named_parameters(recurse=False)]
    touched = {part.partition(".")[0] for part in parts}
    return [] if WHOLE in touched else [name for name in (*_children(model), *own) if name not in touched]

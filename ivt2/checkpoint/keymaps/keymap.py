"""From the tensors of a reference file to ours and back, strictly.

A map renames *our* names into the reference's. Applied to the names that a network really has, this gives an explicit
dictionary, which is then read in both directions; nothing is guessed from the keys of a file.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ivt2.checkpoint.difference import describe_difference, shorten
from ivt2.checkpoint.keymaps.explain import explain
from ivt2.checkpoint.keymaps.rules import Axis, Copy, Dialect, Drop, Positions, Section, Shape, rename
from ivt2.errors import InputError

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class TensorFacts(NamedTuple):
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def tensor_facts(tensors: Mapping[str, Tensor]) -> dict[str, TensorFacts]:
    """Facts of a state dict, for instance of a network on the meta device."""
    return {name: TensorFacts(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class KeyMap:
    """Names, shapes and repetitions in a published kind of file.

    Patterns on our names are matched behind ``prefix``. The defaults say: every name as it is, all of them in the file.
    """

    name: str
    version: int
    sections: tuple[Section, ...] = (Section(),)
    """The first whose beginning fits a name is used."""
    prefix: str = ""
    """Where in the network the map applies."""
    provides: str = ""
    """Matches the beginning of our names that a file must give; the others come from elsewhere."""
    resized: str | None = None
    """Matches our whole names of position tables [1, positions, width], whose number of positions may differ."""
    axes: tuple[Axis, ...] = ()
    drops: tuple[Drop, ...] = ()
    copies: tuple[Copy, ...] = ()
    positions: tuple[Positions, ...] = ()
    dialects: tuple[Dialect, ...] = ()
    wrappers: tuple[str, ...] = ("module.", "model.")
    """Prefixes that all keys of a file may have in common, beyond those of the layout."""

    def under(self, prefix: str) -> "KeyMap":
        """The same map for a network that is held under a name, for instance ``"audio_encoder."``."""
        return replace(self, prefix=prefix + self.prefix)

    def to_reference(self, name: str) -> str:
        """Reference key of our name.

        Raises:
            ValueError: The map does not speak of that name.
        """
        inner = name.removeprefix(self.prefix)
        for section in self.sections:
            if name.startswith(self.prefix) and inner.startswith(section.ours):
                return section.reference + rename(inner.removeprefix(section.ours), section.renames)
        raise ValueError(f"{self.name}: no section for {name}")

    def plan(self, network: Mapping[str, TensorFacts], file: Mapping[str, TensorFacts], *, source: str) -> "Plan":
        """Compare a file with a network, before anything is read.

        Args:
            network: Names, shapes and dtypes of the network's state.
            file: The same of the file.
            source: What messages call the file.

        Returns:
            Which tensor of the file becomes which of ours.

        Raises:
            InputError: With what is missing, unexpected and of another shape, or which tensors have a dtype that does
                not belong there.
        """
        layout = self._layout({name: facts.shape for name, facts in network.items()})
        bare = _strip_wrappers(file, self.wrappers)
        spelled = _spell(layout.shapes, bare, self.dialects)
        found = {key: bare[spelling] for key, spelling in spelled.items() if spelling in bare}
        ours = set(spelled.values())
        drops = [drop for drop in self.drops if not any(re.match(drop.pattern, key) for key in ours)]
        dropped, unexpected = _sort_rest({key: original for key, original in bare.items() if key not in ours}, drops)
        missing = [spelled[key] for key in layout.missing(found)]
        mismatched = [
            f"{spelled[key]} {list(file[original].shape)} here {list(layout.shapes[key])}"
            for key, original in found.items()
            if not layout.fits(key, file[original].shape)
        ]
        if missing or unexpected or mismatched:
            shapes = {spelled[key]: shape for key, shape in layout.shapes.items()}
            hint = explain(shapes, {key: file[original].shape for key, original in bare.items()})
            raise InputError(
                f"{source}: does not fit {self.name} (version {self.version} of its key map): "
                f"{describe_difference(missing, unexpected, mismatched)}; {hint}"
            )
        keys = {name: found[key] for key, name in layout.names.items()}
        copies = {found[key]: found[original] for key, original in layout.copies.items() if key in found}
        counted = tuple(found[key] for key in layout.positions if key in found)
        whole = {key for name, key in keys.items() if not network[name].dtype.is_floating_point} | set(counted)
        _check_dtypes({key: file[key].dtype for key in (*keys.values(), *copies, *counted)}, whole, source)
        return Plan(
            source=source,
            names=tuple(keys),
            dropped=dropped,
            resized=tuple(
                name for name in keys if self.is_table(name) and file[keys[name]].shape != network[name].shape
            ),
            keys=keys,
            shapes={name: network[name].shape for name in keys if self._axis(name) is not None},
            copies=copies,
            positions=counted,
        )

    def write(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors under the reference's keys and in its shapes, copies and counting buffers included.

        Values stay as they are, bit for bit. Names that the map does not provide are left out.
        """
        layout = self._layout({name: tuple(tensor.shape) for name, tensor in state.items()})
        for key, name in layout.names.items():
            yield key, state[name].reshape(layout.shapes[key])
        for key, original in layout.copies.items():
            yield key, state[layout.names[original]].reshape(layout.shapes[key])
        for key, table in layout.positions.items():
            yield key, torch.arange(layout.shapes[table][0]).unsqueeze(0)

    def is_table(self, name: str) -> bool:
        """Whether our name is that of a position table whose number of positions may differ."""
        return self.resized is not None and self._matches(f"(?:{self.resized})$", name)

    def _layout(self, network: Mapping[str, Shape]) -> "_Layout":
        """What the reference's file of such a network holds."""
        ours = [name for name in network if name.startswith(self.prefix) and self._matches(self.provides, name)]
        names = {self.to_reference(name): name for name in ours}
        if len(names) != len(ours):
            raise ValueError(f"{self.name}: two of our names have the same reference key")
        copies: dict[str, str] = {}
        groups: dict[str, list[str]] = {}
        for copy in self.copies:
            pairs = copy.pairs(names)
            copies |= pairs
            groups.setdefault(copy.group, []).extend(pairs)
        positions = {key: table for buffer in self.positions for key, table in buffer.pairs(names).items()}
        shapes = {key: self._reference_shape(name, network[name]) for key, name in names.items()}
        shapes |= {key: shapes[original] for key, original in copies.items()}
        shapes |= {key: (1, shapes[table][0]) for key, table in positions.items()}
        return _Layout(
            names=names,
            shapes=shapes,
            others={key: network[name] for key, name in names.items() if self._has_two_forms(name)},
            tables={key for key, name in names.items() if self.is_table(name)},
            copies=copies,
            groups=tuple(groups.values()),
            positions=positions,
        )

    def _matches(self, pattern: str, name: str) -> bool:
        return re.match(pattern, name.removeprefix(self.prefix)) is not None

    def _axis(self, name: str) -> Axis | None:
        return next((axis for axis in self.axes if self._matches(axis.pattern, name)), None)

    def _has_two_forms(self, name: str) -> bool:
        axis = self._axis(name)
        return axis is not None and axis.optional

    def _reference_shape(self, name: str, shape: Shape) -> Shape:
        axis = self._axis(name)
        return shape if axis is None else axis.reference_shape(shape)


@dataclass(frozen=True)
class Plan:
    """Which tensor of a file becomes which of ours."""

    source: str
    names: tuple[str, ...]
    """Our names that the file gives, in the network's order."""
    dropped: Mapping[str, str]
    """Keys of the file that are left out, and why."""
    resized: tuple[str, ...]
    """Those of ``names`` whose table has another number of positions in the file: the caller resizes them."""
    keys: Mapping[str, str]
    """The file's key of each of ``names``."""
    shapes: Mapping[str, Shape]
    """Our shapes of tensors that the file may have with one axis more or less."""
    copies: Mapping[str, str]
    """Keys of the file that must equal another one."""
    positions: tuple[str, ...]
    """Keys of the file that must count from 0."""

    def read(self, name: str, tensor: Callable[[str], Tensor]) -> Tensor:
        """Our tensor of that name, in the file's dtype; one of ``resized`` has the file's number of positions.

        Args:
            name: One of ``names``.
            tensor: Fetches one tensor of the file by its key there.
        """
        value = tensor(self.keys[name])
        return value.reshape(self.shapes[name]) if name in self.shapes else value

    def check(self, tensor: Callable[[str], Tensor]) -> None:
        """Compare repeated tensors with their originals, and counting buffers with 0, 1, 2, ...

        Args:
            tensor: As in ``read``.

        Raises:
            InputError: They differ.
        """
        for key, original in self.copies.items():
            if not torch.equal(tensor(key), tensor(original)):
                raise InputError(
                    f"{self.source}: {key} must repeat {original} and does not: the file is damaged or was edited; "
                    "fetch it again"
                )
        for key in self.positions:
            value = tensor(key)
            if not torch.equal(value.long(), torch.arange(value.numel(), device=value.device).view(value.shape)):
                raise InputError(
                    f"{self.source}: {key} must hold 0 to {value.numel() - 1} in order and does not: the file is "
                    "damaged or counts positions otherwise; fetch it again"
                )


@dataclass(frozen=True)
class _Layout:
    """What the reference's file of one network holds; all keys in the usual spelling."""

    names: dict[str, str]
    """Our names by their keys, in the network's order."""
    shapes: dict[str, Shape]
    """Shapes of all keys, copies and counting buffers included."""
    others: dict[str, Shape]
    """Second shapes that are accepted too."""
    tables: set[str]
    """Position tables."""
    copies: dict[str, str]
    groups: tuple[list[str], ...]
    """Copies that are in a file together or not at all."""
    positions: dict[str, str]

    def missing(self, found: Mapping[str, str]) -> list[str]:
        """Keys that a file must have and lacks."""
        partial = [group for group in self.groups if any(key in found for key in group)]
        return [key for key in (*self.names, *(key for group in partial for key in group)) if key not in found]

    def fits(self, key: str, shape: Shape) -> bool:
        """Whether a tensor of that shape can become ours."""
        expected = self.shapes[key]
        if key in self.tables:
            return len(shape) == len(expected) == 3 and shape[::2] == expected[::2] and shape[1] > 0
        return shape in {expected, self.others.get(key)}


def _strip_wrappers(file: Iterable[str], wrappers: tuple[str, ...]) -> dict[str, str]:
    """The file's keys, by what remains of them without prefixes that all have in common."""
    keys = {key: key for key in file}
    while keys:
        shared = next((wrapper for wrapper in wrappers if all(key.startswith(wrapper) for key in keys)), None)
        if shared is None:
            break
        keys = {key.removeprefix(shared): original for key, original in keys.items()}
    return keys


def _spell(expected: Iterable[str], keys: Mapping[str, str], dialects: tuple[Dialect, ...]) -> dict[str, str]:
    """Expected keys in the spelling that more keys of the file agree with."""
    spelled = {key: key for key in expected}
    for dialect in dialects:
        other = {key: rename(usual, dialect.renames) for key, usual in spelled.items()}
        if sum(key in keys for key in other.values()) > sum(key in keys for key in spelled.values()):
            spelled = other
    return spelled


def _sort_rest(keys: Mapping[str, str], drops: Iterable[Drop]) -> tuple[dict[str, str], list[str]]:
    """Keys of the file that are not ours: those that may be left out, with the reason, and the others."""
    dropped, unexpected = {}, []
    for key, original in keys.items():
        reason = next((drop.reason for drop in drops if re.match(drop.pattern, key)), None)
        if reason is None:
            unexpected.append(original)
        else:
            dropped[original] = reason
    return dropped, unexpected


def _check_dtypes(dtypes: Mapping[str, torch.dtype], whole: set[str], source: str) -> None:
    """Refuse weights of several or of strange dtypes, and counters that are no integers."""
    weights: dict[torch.dtype, list[str]] = {}
    for key, dtype in dtypes.items():
        if key not in whole:
            weights.setdefault(dtype, []).append(key)
        elif dtype not in INTEGER_DTYPES:
            raise InputError(f"{source}: {key} is {_name(dtype)}, it must hold integers: fetch the file again")
    if len(weights) > 1 or not set(weights) <= set(WEIGHT_DTYPES):
        found = "; ".join(shorten(_name(dtype), keys) for dtype, keys in sorted(weights.items(), key=_rarest_first))
        raise InputError(
            f"{source}: weights must all be float32, all float16 or all bfloat16, and are {found}: fetch the file "
            "again, or convert it to one of them"
        )


def _rarest_first(group: tuple[torch.dtype, list[str]]) -> int:
    return len(group[1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""What a key map is made of."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

Shape = tuple[int, ...]
Renames = tuple[tuple[str, str], ...]
"""Regular expressions and their replacements, applied one after the other."""


def rename(name: str, renames: Renames) -> str:
    """Apply all of the renames."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class Section:
    """A part of a network: our names that begin with ``ours`` begin with ``reference`` in the file.

    ``renames`` apply to the rest of the name.
    """

    ours: str = ""
    reference: str = ""
    renames: Renames = ()


@dataclass(frozen=True)
class Drop:
    """A part that may be in a file and is left out, if the network has nothing of it."""

    pattern: str
    """Matched from the beginning of a reference key; with one such key in the network, none is left out."""
    reason: str


@dataclass(frozen=True)
class Copy:
    """A key that repeats another tensor, because the reference shares it between modules."""

    witness: str
    """Matches each whole reference key that comes with a copy."""
    key: str
    """The copy, as a replacement of ``witness``."""
    original: str
    """What it repeats, as a replacement of ``witness``; without that tensor there is no copy."""
    group: str = ""
    """A file holds all copies of one group or, where shared tensors are stored once, none of them."""

    def pairs(self, keys: Iterable[str]) -> dict[str, str]:
        """Copies in a layout of these keys, each with its original."""
        matches = [match for key in keys if (match := re.fullmatch(self.witness, key))]
        found = {match.expand(self.key): match.expand(self.original) for match in matches}
        return {key: original for key, original in found.items() if original in keys}


@dataclass(frozen=True)
class Positions:
    """An integer buffer [1, n] that holds 0 to n - 1 for a table of n rows; newer files leave it out."""

    table: str
    """Matches the whole reference key of the table."""
    key: str
    """The buffer, as a replacement of ``table``."""

    def pairs(self, keys: Iterable[str]) -> dict[str, str]:
        """Buffers in a layout of these keys, each with its table."""
        return {match.expand(self.key): key for key in keys if (match := re.fullmatch(self.table, key))}


@dataclass(frozen=True)
class Axis:
    """An axis of length one that only one side has."""

    pattern: str
    """Matches from the beginning of our name."""
    position: int
    ours: bool
    """Whether we have it, or the reference."""
    optional: bool = False
    """Whether files exist in both forms."""

    def reference_shape(self, shape: Shape) -> Shape:
        """Shape in the file of a tensor that has ``shape`` here."""
        head, tail = shape[: self.position], shape[self.position :]
        return (*head, *tail[1:]) if self.ours else (*head, 1, *tail)


@dataclass(frozen=True)
class Dialect:
    """Another spelling of reference keys; a file is in it as a whole, or not at all."""

    renames: Renames
    """From the usual key to the other one."""

"""Whether a shard set has the kinds of captions that a configuration asks for: looked up before anything runs."""

from collections.abc import Sequence

from ivt2.data.captions import kinds_of
from ivt2.data.ledger import SampleError
from ivt2.data.shards import ShardSet
from ivt2.data.tar_index import TEXT_TYPES
from ivt2.errors import InputError

_FIRST_SAMPLES = 16
"""Samples that are looked at: a kind that some samples lack is for the ledger, one that none has is a mistake."""


def check_kinds(name: str, shards: ShardSet, kinds: Sequence[str]) -> None:
    """Look at the first samples of a set for captions of some kinds.

    Args:
        name: of the source, for the message.
        shards: the set.
        kinds: that are asked for.

    Raises:
        InputError: if these samples have captions, but none of them of one of the kinds.
    """
    found: set[str] = set()
    num_read = 0
    for index in range(min(_FIRST_SAMPLES, len(shards))):
        try:
            found.update(kinds_of(shards.read(index, TEXT_TYPES).members))
        except SampleError:
            continue
        num_read += 1
        if found.issuperset(kinds):
            return
    if num_read:
        missing = next(kind for kind in kinds if kind not in found)
        has = ", ".join(sorted(found)) or "none at all"
        raise InputError(
            f"{name}: its first {num_read} samples have no captions of the kind {missing} (found: {has}); ask for "
            "another kind, or write the shards with it"
        )

"""How to say in one line that a file and a network do not fit."""

from collections.abc import Sequence

_NUM_SHOWN = 3


def describe_difference(missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[str]) -> str:
    """The three lists, each with its length and its first names.

    Args:
        missing: Names that the network needs and the file lacks.
        unexpected: Names in the file that the network has no use for.
        mismatched: Names that both have in different shapes, with those shapes.
    """
    return "; ".join((
        shorten("missing", missing), shorten("unexpected", unexpected), shorten("of another shape", mismatched),
    ))  # fmt: skip


def shorten(title: str, names: Sequence[str]) -> str:
    """Number of names, what they are, and the first few of them."""
    if not names:
        return f"0 {title}"
    more = f", and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return f"{len(names)} {title} ({', '.join(names[:_NUM_SHOWN])}{more})"

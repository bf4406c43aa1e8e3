"""InternVideo2 as one Lightning experiment system.

``ivt2.load`` gives a released network ready for use; see :mod:`ivt2.hub`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivt2.hub import load as load


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import ivt2.models`` stays light."""
    if name != "load":
        raise AttributeError(f"module 'ivt2' has no attribute {name!r}")
    from ivt2.hub import load

    return load

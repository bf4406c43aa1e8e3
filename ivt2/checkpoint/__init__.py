"""Training checkpoints: written whole, verified, free of pickle."""

from ivt2.checkpoint.folder import (
    fingerprint,
    load_checkpoint,
    newest_valid,
    read_metadata,
    read_weights,
    save_checkpoint,
    verify,
)
from ivt2.checkpoint.manifest import discard
from ivt2.checkpoint.weights import load_weights, require_same_architecture

__all__ = [
    "discard",
    "fingerprint",
    "load_checkpoint",
    "load_weights",
    "newest_valid",
    "read_metadata",
    "read_weights",
    "require_same_architecture",
    "save_checkpoint",
    "verify",
]

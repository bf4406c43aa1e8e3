"""Accounts of the samples that could not be used: nothing is dropped silently, and a budget says how much may be."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from ivt2.batch import Skipped
from ivt2.errors import InputError

_MAX_OFFENDERS = 1000
"""Keys whose counts are kept; later ones only enter the counts by reason."""


class SampleError(Exception):
    """One sample cannot be used; its batch goes on without it.

    Args:
        reason: one word of a small fixed vocabulary, such as ``text_empty`` or ``shard_truncated``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Ledger:
    """Counts samples offered and samples skipped, by source and reason, and raises beyond a budget.

    A sample that is broken counts each time an epoch comes across it, so skipped + used = seen at any moment.

    Args:
        budget: samples that may be skipped: an int is a count, a float a ratio in [0, 1] of the samples seen.
        num_samples: a ratio is taken of at least so many samples, so that one early failure does not stop a run.
    """

    def __init__(self, budget: float | int, *, num_samples: int = 0) -> None:
        is_ratio = isinstance(budget, float)
        if budget < 0 or (is_ratio and budget > 1):
            raise InputError(f"budget={budget}: give a ratio in [0, 1] as a float or a count of samples as an int")
        self.budget = budget
        self.num_samples = num_samples
        self.seen = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._offenders: Counter[tuple[str, str]] = Counter()

    @property
    def skipped(self) -> int:
        """Samples skipped so far, all reasons together."""
        return self.counts.total()

    @property
    def allowed(self) -> int:
        """How many may be skipped at this point."""
        if isinstance(self.budget, float):
            return int(self.budget * max(self.seen, self.num_samples))
        return self.budget

    def by_reason(self) -> dict[str, int]:
        """Return the counts over all sources, in the order of the reasons' names."""
        totals: Counter[str] = Counter()
        for (_, reason), count in self.counts.items():
            totals[reason] += count
        return dict(sorted(totals.items()))

    def add(self, skipped: Skipped) -> None:
        """Enter one skipped sample.

        Raises:
            InputError: when more are skipped than the budget allows.
        """
        self.counts[skipped.source, skipped.reason] += 1
        offender = (skipped.source, skipped.key)
        if offender in self._offenders or len(self._offenders) < _MAX_OFFENDERS:
            self._offenders[offender] += 1
        if self.skipped > self.allowed:
            raise InputError(self._complaint())

    def add_seen(self, num_samples: int) -> None:
        """Count samples that were offered, used or not; call it before their failures are entered."""
        self.seen += num_samples

    def state_dict(self) -> dict[str, Any]:
        """Return everything counted, in types that json knows."""
        return {
            "seen": self.seen,
            "counts": [[*key, count] for key, count in sorted(self.counts.items())],
            "offenders": [[*key, count] for key, count in sorted(self._offenders.items())],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the counts of ``state_dict``; the budget is the one given now."""
        self.seen = int(state["seen"])
        self.counts = Counter({(source, reason): count for source, reason, count in state["counts"]})
        self._offenders = Counter({(source, key): count for source, key, count in state["offenders"]})

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another ledger's ``state_dict`` has counted, such as that of another rank."""
        self.seen += int(state["seen"])
        self.counts.update({(source, reason): count for source, reason, count in state["counts"]})
        self._offenders.update({(source, key): count for source, key, count in state["offenders"]})

    def _complaint(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.by_reason().items())
        worst = sorted(self._offenders.items(), key=lambda item: (-item[1], item[0]))[:3]
        keys = ", ".join(f"{source}:{key}" for (source, key), _ in worst)
        return (
            f"{self.skipped} of {self.seen} samples cannot be used ({reasons}), for example {keys}; "
            f"budget={self.budget} allows {self.allowed}: repair or remove these samples, or raise budget"
        )


def table(ledger: Ledger) -> Table:
    """Counts by source and reason, for the terminal."""
    title = f"skipped {ledger.skipped} of {ledger.seen} samples"
    rows = Table("source", "reason", title=title)
    rows.add_column("samples", justify="right")
    for (source, reason), count in sorted(ledger.counts.items()):
        rows.add_row(Text(source), Text(reason), str(count))
    return rows

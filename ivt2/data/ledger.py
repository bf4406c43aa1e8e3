"""Accounts of the samples that could not be used: nothing is dropped silently, and a budget says how much may be."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from ivt2.batch import Skipped
from ivt2.errors import InputError

_MAX_OFFENDERS = 1000
"""Samples whose counts are kept; later ones only enter the counts by reason."""

_OTHERS = "default"
"""Name of the budget of all reasons that have none of their own."""


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
        budget: samples that may be skipped: an int is a count, a float a ratio in [0, 1] of the samples seen. A mapping
            gives single reasons a budget of their own, and ``default`` to all other reasons together.
        num_samples: a ratio is taken of at least so many samples, so that one early failure does not stop a run.

    Raises:
        InputError: when a budget is out of range or a mapping has no ``default``.
    """

    def __init__(self, budget: float | int | Mapping[str, float | int], *, num_samples: int = 0) -> None:
        self.budgets = dict(budget) if isinstance(budget, Mapping) else {_OTHERS: budget}
        if _OTHERS not in self.budgets:
            raise InputError(f"budget={self.budgets}: add `{_OTHERS}`, the budget of all other reasons")
        for name, value in self.budgets.items():
            _check(f"budget.{name}" if isinstance(budget, Mapping) else "budget", value)
        self.budget = budget
        self.num_samples = num_samples
        self.seen = 0
        self.padded_sounds = 0
        """Clips without sound that got rows of zeros, which the budget does not limit."""
        self.counts: Counter[tuple[str, str]] = Counter()
        self.listener: Callable[[Skipped], None] | None = None
        """Called with each sample that is entered, also with the one that breaks the budget."""
        self._offenders: Counter[tuple[str, str, str]] = Counter()

    @property
    def skipped(self) -> int:
        """Samples skipped so far, all reasons together."""
        return self.counts.total()

    @property
    def allowed(self) -> int:
        """How many may be skipped at this point, of the reasons without a budget of their own."""
        return self._allowed(_OTHERS)

    def by_reason(self) -> dict[str, int]:
        """Return the counts over all sources, in the order of the reasons' names."""
        totals: Counter[str] = Counter()
        for (_, reason), count in self.counts.items():
            totals[reason] += count
        return dict(sorted(totals.items()))

    def add(self, skipped: Skipped) -> None:
        """Enter one skipped sample.

        Raises:
            InputError: when more are skipped than the budget of its reason allows.
        """
        self.counts[skipped.source, skipped.reason] += 1
        offender = (skipped.source, skipped.key, skipped.reason)
        if offender in self._offenders or len(self._offenders) < _MAX_OFFENDERS:
            self._offenders[offender] += 1
        if self.listener is not None:
            self.listener(skipped)
        name = self._budget_of(skipped.reason)
        reasons = {reason: count for reason, count in self.by_reason().items() if self._budget_of(reason) == name}
        if sum(reasons.values()) > self._allowed(name):
            raise InputError(self._complaint(name, reasons))

    def add_seen(self, num_samples: int) -> None:
        """Count samples that were offered, used or not; call it before their failures are entered."""
        self.seen += num_samples

    def state_dict(self) -> dict[str, Any]:
        """Return everything counted, in types that json knows."""
        return {
            "seen": self.seen,
            "padded_sounds": self.padded_sounds,
            "counts": [[*key, count] for key, count in sorted(self.counts.items())],
            "offenders": [[*key, count] for key, count in sorted(self._offenders.items())],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the counts of ``state_dict``; the budget is the one given now."""
        self.seen = int(state["seen"])
        self.padded_sounds = int(state.get("padded_sounds", 0))  # older checkpoints did not count them
        self.counts = Counter({(source, reason): count for source, reason, count in state["counts"]})
        self._offenders = Counter({tuple(names): count for *names, count in state["offenders"]})

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another ledger's ``state_dict`` has counted, such as that of another rank."""
        self.seen += int(state["seen"])
        self.padded_sounds += int(state.get("padded_sounds", 0))
        self.counts.update({(source, reason): count for source, reason, count in state["counts"]})
        self._offenders.update({tuple(names): count for *names, count in state["offenders"]})

    def _budget_of(self, reason: str) -> str:
        return reason if reason in self.budgets else _OTHERS

    def _allowed(self, name: str) -> int:
        budget = self.budgets[name]
        return int(budget * max(self.seen, self.num_samples)) if isinstance(budget, float) else budget

    def _complaint(self, name: str, reasons: Mapping[str, int]) -> str:
        offenders = [(item, count) for item, count in self._offenders.items() if item[2] in reasons]
        worst = sorted(offenders, key=lambda entry: (-entry[1], entry[0]))[:3]
        keys = ", ".join(f"{source}:{key}" for (source, key, _), _ in worst)
        budget = f"budget.{name}" if isinstance(self.budget, Mapping) else "budget"
        return (
            f"{sum(reasons.values())} of {self.seen} samples cannot be used "
            f"({', '.join(f'{count} {reason}' for reason, count in reasons.items())}), for example {keys}; "
            f"{budget}={self.budgets[name]} allows {self._allowed(name)}: repair or remove these samples, "
            f"or raise {budget}"
        )


def table(ledger: Ledger) -> Table:
    """Counts by source and reason, for the terminal."""
    title = f"skipped {ledger.skipped} of {ledger.seen} samples"
    rows = Table("source", "reason", title=title)
    rows.add_column("samples", justify="right")
    for (source, reason), count in sorted(ledger.counts.items()):
        rows.add_row(Text(source), Text(reason), str(count))
    return rows


def _check(name: str, budget: Any) -> None:
    """Refuse what is neither a count nor a ratio."""
    is_number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not is_number or not 0 <= budget <= (1 if isinstance(budget, float) else budget):  # also refuses nan
        raise InputError(f"{name}={budget}: give a ratio in [0, 1] as a float or a count of samples as an int")

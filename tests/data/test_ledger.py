"""Exact: nothing is lost from the accounts, and the budget speaks in time."""

import json

import pytest

from ivt2.batch import Skipped
from ivt2.data.ledger import Ledger
from ivt2.errors import InputError


def fill(ledger, *entries, seen=0):
    ledger.add_seen(seen)
    for source, key, reason in entries:
        ledger.add(Skipped(source, key, reason))


def test_counts_by_source_and_reason():
    ledger = Ledger(10)
    fill(ledger, ("a", "x", "empty"), ("a", "y", "empty"), ("b", "x", "not_video"), seen=20)
    assert ledger.counts == {("a", "empty"): 2, ("b", "not_video"): 1}
    assert ledger.by_reason() == {"empty": 2, "not_video": 1}
    assert (ledger.skipped, ledger.seen) == (3, 20)


def test_a_count_is_a_limit():
    ledger = Ledger(2)
    fill(ledger, ("a", "x", "empty"), ("a", "x", "empty"), seen=100)
    with pytest.raises(
        InputError, match=r"3 of 100 .*\(2 empty, 1 not_video\), for example a:x, b:z; budget=2 allows 2"
    ):
        fill(ledger, ("b", "z", "not_video"))


def test_a_ratio_is_taken_of_what_was_seen_but_at_least_of_the_set():
    ledger = Ledger(0.1, num_samples=20)
    fill(ledger, ("a", "x", "empty"), ("a", "y", "empty"), seen=2)
    assert ledger.allowed == 2
    ledger.add_seen(28)
    fill(ledger, ("a", "z", "empty"))
    with pytest.raises(InputError, match="4 of 30"):
        fill(ledger, ("a", "z", "empty"))


@pytest.mark.parametrize("budget", [0, 0.0])
def test_no_budget_allows_nothing(budget):
    with pytest.raises(InputError, match="1 of 50"):
        fill(Ledger(budget, num_samples=1000), ("a", "x", "empty"), seen=50)


@pytest.mark.parametrize("budget", [-1, -0.1, 1.5, float("nan"), "5%", True, None])
def test_budgets_out_of_range(budget):
    with pytest.raises(InputError, match=r"^budget=.*: give a ratio"):
        Ledger(budget)
    with pytest.raises(InputError, match=r"^budget\.empty=.*: give a ratio"):
        Ledger({"default": 0.1, "empty": budget})


def test_budgets_of_reasons_need_one_for_the_others():
    with pytest.raises(InputError, match="add `default`, the budget of all other reasons"):
        Ledger({"text_empty": 0.5})


def test_state_goes_through_json_and_adds_up():
    ledger = Ledger(100)
    fill(ledger, ("a", "x", "empty"), ("b", "y", "too_long"), seen=7)
    ledger.padded_sounds = 3
    state = json.loads(json.dumps(ledger.state_dict()))
    other = Ledger(100)
    other.load_state_dict(state)
    assert other.state_dict() == ledger.state_dict()
    other.merge(state)
    assert other.by_reason() == {"empty": 2, "too_long": 2}
    assert other.seen == 14
    assert other.padded_sounds == 6
    del state["padded_sounds"]  # as checkpoints from before they were counted
    other.load_state_dict(state)
    assert other.padded_sounds == 0


def test_memory_is_bounded_though_every_count_is_kept():
    ledger = Ledger(10**6)
    fill(ledger, *(("a", str(number), "empty") for number in range(5000)), seen=5000)
    assert ledger.skipped == 5000
    assert len(ledger.state_dict()["offenders"]) == 1000


def test_a_reason_with_a_budget_of_its_own_is_counted_apart():
    ledger = Ledger({"default": 1, "text_empty": 0.5, "corrupt": 2}, num_samples=8)
    fill(ledger, *[("a", f"t{n}", "text_empty") for n in range(4)], ("a", "c1", "corrupt"), ("a", "c1", "corrupt"))
    fill(ledger, ("b", "x", "too_long"), seen=8)
    assert ledger.allowed == 1
    with pytest.raises(InputError) as others:
        fill(ledger, ("b", "y", "truncated"))
    assert str(others.value) == (
        "2 of 8 samples cannot be used (1 too_long, 1 truncated), for example b:x, b:y; budget.default=1 allows 1: "
        "repair or remove these samples, or raise budget.default"
    )
    with pytest.raises(InputError, match=r"5 of 8 .* \(5 text_empty\), for example a:t0, .* budget.text_empty=0.5 all"):
        fill(ledger, ("a", "t9", "text_empty"))
    with pytest.raises(InputError, match=r"\(3 corrupt\), for example a:c1, b:z; budget.corrupt=2 allows 2: "):
        fill(ledger, ("b", "z", "corrupt"))
    assert ledger.skipped == 10


def test_a_listener_hears_of_every_sample_also_of_the_last():
    heard, ledger = [], Ledger({"default": 0, "empty": 1})
    ledger.listener = heard.append
    fill(ledger, ("a", "x", "empty"))
    with pytest.raises(InputError):
        fill(ledger, ("a", "y", "corrupt"))
    assert heard == [Skipped("a", "x", "empty"), Skipped("a", "y", "corrupt")]

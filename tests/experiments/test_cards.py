"""Exact: every card under experiments/ is evidence that a reader can check, and says so where there is none."""

import re
from pathlib import Path

import pytest
import yaml

from ivt2.cli.door import CONF

ROOT = Path(__file__).parents[2] / "experiments"
CARDS = sorted(folder.name for folder in ROOT.iterdir() if folder.is_dir())
NONE = "not measured"
FACTS = {"mfu_percent", "clips_per_s", "peak_memory_gb"}
ENVIRONMENT = {"date", "revision", "driver", "cuda", "torch"}


def result(name):
    return yaml.safe_load((ROOT / name / "result.yaml").read_text())


def numbers(card):
    """Values that a run gave, by what they are of."""
    found = {(row["what"], row["hardware"], fact): row[fact] for row in card["steps"] for fact in FACTS}
    return found | {(row["what"], "", "value"): row["value"] for row in card["scores"]}


def problems(card):
    """What a reader could not rely on."""
    wrong = [key for key, value in numbers(card).items() if value != NONE and not _number(value)]
    known = {key for key, value in card["environment"].items() if value not in {NONE, "", None}}
    if any(value != NONE for value in numbers(card).values()) and known != ENVIRONMENT:
        wrong.append(("environment", *sorted(ENVIRONMENT - known)))
    return wrong


def _number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


@pytest.mark.parametrize("name", CARDS)
def test_a_result_has_evidence_alone_and_says_what_was_not_measured(name):
    card = result(name)
    assert set(card) == {"experiment", "commands", "environment", "counted", "steps", "scores"}
    assert card["experiment"] == name
    assert (CONF / "experiment" / f"{name}.yaml").is_file()
    assert set(card["environment"]) == ENVIRONMENT
    assert all(set(row) == {"what", "hardware", *FACTS} for row in card["steps"])
    assert all(set(row) == {"what", "unit", "published", "value"} for row in card["scores"])
    assert all(_number(value) for value in card["counted"].values())
    assert problems(card) == []


def test_a_value_without_its_circumstances_would_be_found():
    card = result("stage1_1b")
    card["steps"][0]["clips_per_s"] = 20.5
    assert problems(card) == [("environment", *sorted(ENVIRONMENT))]
    card["environment"] = dict.fromkeys(ENVIRONMENT, "known")
    assert problems(card) == []
    for value in (None, "", "fast", True, -1.0):
        card["scores"][0]["value"] = value
        assert len(problems(card)) == 1


@pytest.mark.parametrize("name", CARDS)
def test_the_page_shows_what_the_result_says(name):
    card, page = result(name), (ROOT / name / "README.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    facts = ("what", "hardware", "mfu_percent", "clips_per_s", "peak_memory_gb")
    steps = [[str(row[fact]) for fact in facts] for row in card["steps"]]
    scores = [[str(row[fact]) for fact in ("what", "unit", "published", "value")] for row in card["scores"]]
    assert [row for row in rows if row[0] not in {"step", "score", "---"}] == steps + scores
    assert all(re.search(rf"\b{re.escape(str(value))}\b", page) for value in card["counted"].values())
    assert sorted(line for line in page.splitlines() if line.startswith("python ")) == sorted(card["commands"])

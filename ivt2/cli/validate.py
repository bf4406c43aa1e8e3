"""Say whether shards can be trained on: ``python -m ivt2.cli.validate shards=data/shards/train``.

Exit status 0 says that they can, 1 that they cannot, 2 that the question could not be asked.
"""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ivt2.cli.door import command
from ivt2.cli.output_file import writable
from ivt2.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from ivt2.data.findings import Findings

_MAX_ROWS = 8
"""Of the table for one thing, such as languages; json has them all."""


class ValidateConfig(Protocol):
    """Root keys of ``conf/validate.yaml``."""

    shards: str
    """Folder or address of the shards."""
    decode: float | int
    """Samples to decode: a share in [0, 1] or a count."""
    captions: bool
    """Every sample needs a caption."""
    caption_kinds: list[str]
    """Kinds of captions that every sample needs besides."""
    num_frames: int
    """Frames to decode of each video."""
    hashes: bool
    """Read every shard whole and compare it with the manifest."""
    budget: float | int
    """Samples that may be unusable: a share in [0, 1] or a count."""
    output: str | None
    """File for the counts, as json."""
    decoder_timeout_s: float
    """Seconds that decoding one sample may take."""
    num_processes: int | None
    """That read, decode and hash; one for each core, at most 4, when not given."""
    seed: int
    """Chooses the samples to decode."""


def compare_hashes(folder: str, num_shards: int, num_processes: int) -> dict[str, str]:
    """Shards of a folder that are not as its manifest says, and how they differ.

    Args:
        folder: of the shards.
        num_shards: how many there are.
        num_processes: how many read.

    Raises:
        InputError: There is no manifest, or the folder is an address.
    """
    from ivt2.data.manifest import verify
    from ivt2.data.progress import progress_bar
    from ivt2.data.remote import is_address

    if is_address(folder):
        raise InputError("hashes=true: shards of an address are compared whenever they are fetched; leave it out")
    wrong: dict[str, str] = {}
    with progress_bar("shards") as bar, closing(verify(folder, num_processes=num_processes)) as checks:
        task = bar.add_task("hashing", total=num_shards)
        for check in checks:
            if check.problem is not None:
                wrong[check.name] = check.problem
            bar.advance(task)
    return wrong


def complaints(findings: "Findings", wrong: dict[str, str], budget: float | int, allowed: int) -> str:
    """Why the set should not be trained on, in one line; empty when it may be."""
    found = []
    if findings.unusable > allowed:
        reasons = ", ".join(f"{count} {reason}" for reason, count in findings.reasons.items())
        exact = findings.unusable == sum(findings.reasons.values())
        unusable = f"{findings.unusable:.0f}" if exact else f"about {findings.unusable:.1f}"
        found.append(
            f"{unusable} of {findings.samples} samples cannot be used (found: {reasons}), "
            f"budget={budget} allows {allowed}: repair or remove these samples, or raise budget"
        )
    if wrong:
        name, problem = next(iter(wrong.items()))
        found.append(
            f"{len(wrong)} shards are not as the manifest says, for example {name} ({problem}): restore them or write "
            "the set again"
        )
    return "; ".join(found)


def tabulated(facts: dict[str, Any]) -> "Table":
    """All counts, one a row."""
    from rich.table import Table
    from rich.text import Text

    rows = Table("what", "count", "examples", title=Text(facts["shards"]))
    rows.columns[1].justify = "right"
    examples = facts["unusable"]["examples"]
    rows.add_row("samples", str(facts["samples"]))
    for section in ("decoding", "missing_pairs", "bad_times", "types"):
        rows.add_section()
        for name, value in facts[section].items():
            rows.add_row(Text(f"{section}: {name}"), str(value))
    rows.add_section()
    for name, value in facts["unusable"]["reasons"].items():
        rows.add_row(Text(f"unusable: {name}"), str(value), Text(" ".join(examples[name])))
    rows.add_row("unusable: estimated in all", f"{facts['unusable']['estimated']:g}")
    duplicates = facts["duplicate_keys"]
    rows.add_row("duplicate_keys", str(len(duplicates)), Text(" ".join(list(duplicates)[:3])))
    rows.add_section()
    for section in ("captions", "languages", "sound", "duration_s"):
        for name, value in facts[section].items():
            spread = value if isinstance(value, dict) else {"": value}
            for part, number in list(spread.items())[:_MAX_ROWS]:
                label = Text(f"{section}: {name} {part}".strip())
                rows.add_row(label, "-" if number is None else f"{number:g}")
    rows.add_section()
    wrong = facts["hash_mismatches"]
    listed = [f"{name}: {problem}" for name, problem in list((wrong or {}).items())[:3]]
    rows.add_row("hash mismatches", "not compared" if wrong is None else str(len(wrong)), Text("\n".join(listed)))
    return rows


@command("validate", keys=ValidateConfig)
def main(cfg: ValidateConfig) -> None:
    """Go through the set, print and write what was found, and end with the verdict."""
    from rich.console import Console

    from ivt2.data.isolation import DecoderProcess
    from ivt2.data.ledger import Ledger
    from ivt2.data.progress import progress_bar
    from ivt2.data.shards import ShardSet
    from ivt2.data.validation import validate
    from ivt2.data.workers import num_readers

    shards = ShardSet.open(cfg.shards)
    allowed = Ledger(cfg.budget, num_samples=len(shards)).allowed
    output = None if cfg.output is None else writable(Path(cfg.output))
    num_processes = num_readers(cfg.num_processes)
    wrong = compare_hashes(cfg.shards, len(shards.names), num_processes) if cfg.hashes else None
    process = DecoderProcess(timeout_s=cfg.decoder_timeout_s)
    with closing(process), progress_bar("samples") as bar:
        task = bar.add_task("validating", total=len(shards))
        findings = validate(
            shards,
            decode=cfg.decode,
            process=process,
            num_processes=num_processes,
            captions=cfg.captions,
            caption_kinds=cfg.caption_kinds,
            num_frames=cfg.num_frames,
            seed=cfg.seed,
            on_samples=lambda num_samples: bar.advance(task, num_samples),
        )
    complaint = complaints(findings, wrong or {}, cfg.budget, allowed)
    facts = {
        "shards": cfg.shards,
        "manifest_hash": shards.manifest_hash,
        "usable": not complaint,
        "budget": cfg.budget,
        **findings.to_json(),
        "hash_mismatches": wrong,
    }
    if output is not None:
        output.write_text(json.dumps(facts, indent=1) + "\n")
    console = Console()
    console.print(tabulated(facts))
    if complaint:
        sys.exit(f"{cfg.shards}: should not be trained on: {complaint}")
    line = f"{cfg.shards}: can be trained on; {findings.decoded} of {findings.samples} samples were decoded"
    console.print(line, soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()

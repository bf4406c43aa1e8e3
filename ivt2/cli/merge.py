"""Join the parts of a packing on several machines: ``python -m ivt2.cli.merge output=...``."""

from pathlib import Path
from typing import Protocol

from ivt2.cli.door import command


class MergeConfig(Protocol):
    """Root keys of ``conf/merge.yaml``."""

    output: str
    """Folder that the parts were packed into."""


@command("merge", keys=MergeConfig)
def main(cfg: MergeConfig) -> None:
    """Write the manifest of all parts, then say what they hold and what was left out."""
    from ivt2.cli.shards import summarize
    from ivt2.data.ledger import Ledger
    from ivt2.data.packing import merge_parts

    ledger = Ledger(1.0)  # each part was held to its own budget
    summarize(f"{Path(cfg.output)}: ", merge_parts(cfg.output, ledger), ledger)


if __name__ == "__main__":
    main()

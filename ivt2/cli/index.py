"""Describe shards of another tool, so that they open at once: ``python -m ivt2.cli.index shards=data/webvid``."""

from pathlib import Path
from typing import Protocol

from ivt2.cli.door import command


class IndexConfig(Protocol):
    """Root keys of ``conf/index.yaml``."""

    shards: str
    """Folder of the shards."""
    num_processes: int | None
    """That read; one for each core, at most 4, when not given."""


@command("index", keys=IndexConfig)
def main(cfg: IndexConfig) -> None:
    """Write the index files and the manifest, then say what the folder holds."""
    from rich.console import Console

    from ivt2.data.indexing import index_shards, shard_names
    from ivt2.data.progress import progress_bar
    from ivt2.data.workers import num_readers

    folder = Path(cfg.shards)
    with progress_bar("shards") as bar:
        task = bar.add_task("indexing", total=len(shard_names(folder)))
        indexed = index_shards(
            folder, num_processes=num_readers(cfg.num_processes), on_shard=lambda _: bar.advance(task)
        )
    manifest = indexed.manifest
    lines = [f"{folder}: {manifest.samples} samples in {len(manifest.shards)} shards are indexed"]
    if indexed.unusable:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(indexed.unusable.items()))
        lines.append(f"{indexed.unusable.total()} of them cannot be read: {reasons}")
    if indexed.damaged:
        lines.append(f"{len(indexed.damaged)} shards are damaged and may have held more, first {indexed.damaged[0]}")
    console = Console()
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()

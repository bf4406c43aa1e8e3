"""Pack annotated media into shards: ``python -m ivt2.cli.shards source=... annotations=... output=...``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ivt2.cli.door import command

if TYPE_CHECKING:
    from ivt2.data.annotations import Source


class ShardsConfig(Protocol):
    """Root keys of ``conf/shards.yaml``."""

    source: Any
    """How the annotations are written: a choice of ``conf/source``."""
    annotations: str | None
    """Annotation file; a folder without annotations has none."""
    media_root: str
    """Folder that the files of the annotations are relative to."""
    output: str
    """Folder of the shards."""
    merge: bool
    """Make one sample of all records that hold captions of the same clip."""
    max_samples: int
    """Samples of a shard, at most."""
    max_bytes: int
    """Bytes of a shard, at most; one sample may be larger."""
    budget: float | int
    """Records that may be left out: a ratio in [0, 1] or a count."""
    overwrite: bool
    """Replace the shards that the output folder holds."""


@command("shards", keys=ShardsConfig)
def main(cfg: ShardsConfig) -> None:
    """Write the shards, then say what was written and what was left out."""
    from hydra.utils import instantiate
    from rich.console import Console

    from ivt2.data.annotations_merged import MergedAnnotations
    from ivt2.data.ledger import Ledger, table
    from ivt2.data.packing import pack
    from ivt2.data.progress import progress_bar

    source: Source = instantiate(cfg.source, _convert_="all")
    if cfg.merge:
        source = MergedAnnotations(source)
    num_records = source.count()
    ledger = Ledger(cfg.budget, num_samples=num_records)
    with progress_bar("records") as bar:
        task = bar.add_task("packing", total=num_records)
        manifest = pack(
            source,
            cfg.media_root,
            cfg.output,
            source=source.name,
            ledger=ledger,
            max_samples=cfg.max_samples,
            max_bytes=cfg.max_bytes,
            overwrite=cfg.overwrite,
            annotation_files=[] if cfg.annotations is None else [cfg.annotations],
            on_record=lambda _: bar.advance(task),
        )
    console = Console()
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    line = f"{Path(cfg.output)}: {manifest.samples} samples in {len(manifest.shards)} shards, {megabytes:.1f} MB"
    console.print(line, soft_wrap=True, highlight=False, markup=False)
    if ledger.skipped:
        console.print(table(ledger))


if __name__ == "__main__":
    main()

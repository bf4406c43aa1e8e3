"""Pack annotated media into shards: ``python -m ivt2.cli.shards source=... annotations=... output=...``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ivt2.cli.door import command
from ivt2.errors import InputError

if TYPE_CHECKING:
    from ivt2.data.annotations import Source
    from ivt2.data.ledger import Ledger
    from ivt2.data.manifest import Manifest
    from ivt2.data.packing_plan import HashSplit


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
    merge_captions: bool
    """Make one sample of all records that hold captions of the same clip."""
    preparation: Any
    """What becomes of each file: a choice of ``conf/preparation``."""
    split: Any
    """Which records are packed."""
    shuffle_seed: int | None
    """Packs the records in an order drawn from it."""
    max_samples: int
    """Samples of a shard, at most."""
    max_bytes: int
    """Bytes of a shard, at most; one sample may be larger."""
    num_processes: int | None
    """Workers; one on each CPU core when not given."""
    timeout_s: float
    """Seconds that one record may take."""
    part: int
    """Which part of the work is done here, from 0."""
    num_parts: int
    """How many parts there are."""
    budget: float | int
    """Records that may be left out, of each part: a ratio in [0, 1] or a count."""
    overwrite: bool
    """Begin anew, and replace the shards that the output folder holds."""


@command("shards", keys=ShardsConfig)
def main(cfg: ShardsConfig) -> None:
    """Write the shards, then say what was written and what was left out."""
    from hydra.utils import instantiate

    from ivt2.data.annotations_merged import MergedAnnotations
    from ivt2.data.ledger import Ledger
    from ivt2.data.packing import pack

    if cfg.annotations is None and Path(cfg.output).resolve().is_relative_to(Path(cfg.media_root).resolve()):
        raise InputError(f"output={cfg.output}: lies in media_root, all of which is packed; choose a folder beside it")
    source: Source = instantiate(cfg.source, _convert_="all")
    preparation = instantiate(cfg.preparation, _convert_="all")
    if cfg.merge_captions:
        source = MergedAnnotations(source)
    split: HashSplit = instantiate(cfg.split, _convert_="all")
    num_records = round(source.count() * split.share / max(cfg.num_parts, 1))
    ledger = Ledger(cfg.budget, num_samples=num_records)
    with _bar(num_records) as on_progress:
        manifest = pack(
            source,
            cfg.media_root,
            cfg.output,
            preparation=preparation,
            ledger=ledger,
            max_samples=cfg.max_samples,
            max_bytes=cfg.max_bytes,
            num_processes=cfg.num_processes,
            part=cfg.part,
            num_parts=cfg.num_parts,
            split=split,
            shuffle_seed=cfg.shuffle_seed,
            timeout_s=cfg.timeout_s,
            overwrite=cfg.overwrite,
            annotation_files=[] if cfg.annotations is None else [cfg.annotations],
            on_progress=on_progress,
        )
    part = f"part {cfg.part} of {cfg.num_parts}, " if cfg.num_parts > 1 else ""
    summarize(f"{Path(cfg.output)}: {part}", manifest, ledger)


def summarize(what: str, manifest: "Manifest", ledger: "Ledger") -> None:
    """Say on the terminal what was packed and what was left out.

    Args:
        what: beginning of the line.
        manifest: of what was packed.
        ledger: counted the rest.
    """
    from rich.console import Console

    from ivt2.data.ledger import table

    console = Console()
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    line = f"{what}{manifest.samples} samples in {len(manifest.shards)} shards, {megabytes:.1f} MB"
    console.print(line, soft_wrap=True, highlight=False, markup=False)
    if ledger.skipped:
        console.print(table(ledger))


@contextmanager
def _bar(num_records: int) -> Iterator[Callable[[int], None]]:
    """A bar over the records, whose number is an estimate where they are split; takes the number of those done."""
    from ivt2.data.progress import progress_bar

    with progress_bar("records") as bar:
        task = bar.add_task("packing", total=num_records)
        done = 0

        def show(num_done: int) -> None:
            nonlocal done
            done = num_done
            bar.update(task, completed=num_done)

        yield show
        bar.update(task, total=done or num_records)


if __name__ == "__main__":
    main()

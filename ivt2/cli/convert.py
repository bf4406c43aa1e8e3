"""Published weights become ours, and back: ``python -m ivt2.cli.convert release=... files.model=... output=...``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ivt2.cli.door import command
from ivt2.errors import InputError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ivt2.checkpoint.convert import OnProgress


class ConvertConfig(Protocol):
    """Root keys of ``conf/convert.yaml``."""

    direction: Literal["from_reference", "to_reference"]
    """Whether files become a folder, or a part of a folder a file."""
    release: str | None
    """Name in the table of releases."""
    files: dict[str, str | None]
    """Files of the release's parts."""
    folder: str | None
    """Converted folder that a part is taken from."""
    part: str
    """The part that is taken."""
    output: str
    """Folder or file to write."""
    allow_other_file: bool
    """Accept files of another size than the published ones."""
    overwrite: bool
    """Replace what is there."""


@command("convert", keys=ConvertConfig)
def main(cfg: ConvertConfig) -> None:
    """Convert, then say what was written."""
    from rich.console import Console

    lines = _to_reference(cfg) if cfg.direction == "to_reference" else _from_reference(cfg)
    console = Console()
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _from_reference(cfg: ConvertConfig) -> list[str]:
    """Convert files into a folder; returns what there is to say about it."""
    from ivt2.checkpoint import fingerprint
    from ivt2.checkpoint.convert import convert
    from ivt2.checkpoint.released import read_facts
    from ivt2.checkpoint.zoo import find

    if cfg.release is None:
        raise InputError("release: not set; set it with release=..., python -m ivt2.cli.zoo lists all")
    release = find(cfg.release)
    files = {name: Path(path) for name, path in cfg.files.items() if path is not None}
    output = Path(cfg.output)
    with _watched(output) as on_progress:
        convert(
            release,
            files,
            output,
            allow_other_file=cfg.allow_other_file,
            overwrite=cfg.overwrite,
            on_progress=on_progress,
        )
    lines = [_about(parent) for parent in read_facts(output)[1]["parents"]]
    shards = list(output.glob("*.safetensors"))
    megabytes = sum(shard.stat().st_size for shard in shards) / 1e6
    last = f"{output}: {release.name} in {len(shards)} shards, {megabytes:.1f} MB, SHA-256 of its manifest "
    return [*lines, last + fingerprint(output)]


def _to_reference(cfg: ConvertConfig) -> list[str]:
    """Write a part of a folder as a file; returns what there is to say about it."""
    from ivt2.checkpoint.convert import export
    from ivt2.checkpoint.manifest import sha256
    from ivt2.checkpoint.released import read_facts
    from ivt2.checkpoint.zoo import find

    if cfg.folder is None:
        raise InputError("folder: not set; set it with folder=..., what an earlier conversion wrote")
    release = find(cfg.release or read_facts(Path(cfg.folder))[0].release)
    output = Path(cfg.output)
    with _watched(output) as on_progress:
        export(Path(cfg.folder), release, cfg.part, output, overwrite=cfg.overwrite, on_progress=on_progress)
    megabytes = output.stat().st_size / 1e6
    return [f"{output}: {cfg.part} of {release.name}, {megabytes:.1f} MB, SHA-256 {sha256(output)}"]


def _about(parent: dict[str, Any]) -> str:
    """What became of one file."""
    notes = [f"left out {number} ({reason})" for reason, number in parent["dropped"].items()]
    if parent["resized"]:
        notes.append(f"resized {', '.join(parent['resized'])}")
    if parent["published_bytes"] not in {None, parent["bytes"]}:
        notes.append(f"not the published file, which has {parent['published_bytes']} bytes")
    size = f"{parent['bytes'] / 1e6:.1f} MB of {'/'.join(parent['dtype'])}"
    return "; ".join([f"{parent['part']}: {size}, SHA-256 {parent['sha256']}", *notes])


@contextmanager
def _watched(output: Path) -> "Iterator[OnProgress]":
    """A bar for each step of the work; a disk that fails is the user's to mend."""
    from ivt2.data.progress import progress_bar

    bar = progress_bar("MB")
    tasks: dict[str, TaskID] = {}

    def on_progress(what: str, done: int, total: int) -> None:
        if not tasks:  # not before: a mistake that is seen at once is one line and nothing else
            bar.start()
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total / 1e6)
        bar.update(tasks[what], completed=min(done, total) / 1e6)

    try:
        yield on_progress
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        if tasks:
            bar.stop()


if __name__ == "__main__":
    main()

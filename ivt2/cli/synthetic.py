"""Write a tiny dataset as a published one is laid out: ``python -m ivt2.cli.synthetic dataset=k400 output=...``."""

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from ivt2.cli.door import command

if TYPE_CHECKING:
    from ivt2.data.synthetic_datasets import SyntheticDataset


class SyntheticConfig(Protocol):
    """Root keys of ``conf/synthetic.yaml``."""

    dataset: str
    """A choice of ``conf/source``, video2dataset or img2dataset."""
    output: str
    """Folder of the dataset."""
    num: int
    """Scenes or sounds."""
    split: Literal["train", "val", "test"]
    """Which combinations of words may occur."""
    seed: int
    """Changes the scenes."""


def next_commands(name: str, dataset: "SyntheticDataset", output: str) -> list[str]:
    """What to type to pack and check what was written; tarballs are shards already.

    Args:
        name: of the dataset.
        dataset: what was written.
        output: where.
    """
    folder = Path(output)
    media_root = folder / dataset.split
    needed = {} if dataset.captions else {"captions": "false"}
    if dataset.tarball:
        return [_line("validate", shards=media_root, decode="1.0", budget="0", **needed)]
    options: dict[str, object] = {"merge_captions": "true"} if dataset.merged else {}
    if dataset.class_names is not None:
        names = {"num_classes": dataset.num_classes, "class_names": folder / dataset.class_names[0]}
        options |= {f"source.record.{key}": value for key, value in names.items()}
    lines = []
    for file in dataset.annotations or {"": ""}:
        shards = folder / "shards" / (Path(file).stem or dataset.split)
        given = {"annotations": folder / file} if file else {}
        lines.append(_line("shards", source=name, **given, media_root=media_root, output=shards, **options))
        lines.append(_line("validate", shards=shards, decode="1.0", budget="0", **needed))
    return lines


def _line(module: str, **settings: object) -> str:
    return " ".join([f"python -m ivt2.cli.{module}", *(_setting(key, str(value)) for key, value in settings.items())])


def _setting(key: str, value: str) -> str:
    """A setting as the shell and then Hydra read it."""
    if not re.fullmatch(r"[\w./+-]+", value):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        value = f'"{escaped}"'
    return shlex.quote(f"{key}={value}")


@command("synthetic", keys=SyntheticConfig)
def main(cfg: SyntheticConfig) -> None:
    """Write the files, then say what to type next."""
    from rich.console import Console

    from ivt2.data.progress import progress_bar
    from ivt2.data.synthetic_datasets import describe_dataset, write_dataset

    dataset = describe_dataset(cfg.dataset, split=cfg.split, num=cfg.num, seed=cfg.seed)
    with progress_bar("files") as bar:
        task = bar.add_task("writing", total=len(dataset.files))
        write_dataset(dataset, cfg.output, on_file=lambda: bar.advance(task))
    console, num_files = Console(), len(dataset.file_names())
    first = f"{Path(cfg.output)}: {cfg.dataset}, {cfg.split}, media files: {num_files}; next:"
    for line in [first, *next_commands(cfg.dataset, dataset, cfg.output)]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()

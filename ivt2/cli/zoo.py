"""List the published networks: ``python -m ivt2.cli.zoo``, ``python -m ivt2.cli.zoo name=internvideo2-clip-1b``."""

import json
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ivt2.cli.door import command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ivt2.checkpoint.release import Release

_WIDTH = 200
"""Columns of the table where it does not go to a terminal."""

_MORE = "python -m ivt2.cli.zoo name=<name> tells where the files of one come from and how to get them"


class ZooConfig(Protocol):
    """Root keys of ``conf/zoo.yaml``."""

    name: str | None
    """One release in full; None lists all."""
    format: Literal["table", "json"]
    """For people or for programs."""


def describe(release: "Release") -> dict[str, Any]:
    """Everything that the table of releases says about one, as plain data."""
    from ivt2.checkpoint.zoo import NUM_PARAMETERS, TOKENIZERS, convert_command, page_of

    seen = bool({"video", "image"} & set(release.modalities))
    vocabulary = TOKENIZERS[release.tokenizer] if release.tokenizer else None
    return {
        "name": release.name,
        "title": release.title,
        "modalities": list(release.modalities),
        "num_frames": release.num_frames if seen else None,
        "image_size": release.image_size if seen else None,
        "num_mels": release.num_mels,
        "dim": release.dim,
        "num_parameters": NUM_PARAMETERS[release.name],
        "tokenizer": release.tokenizer,
        "vocabulary": vocabulary and {"file": vocabulary.file, "from": page_of(vocabulary.source)},
        "tasks": release.tasks,
        "parts": [
            {
                "name": part.name,
                "file": part.file,
                "from": page_of(part.source),
                "num_bytes": part.num_bytes,
                "licence": part.licence,
                "key_map": f"{part.key_map.name} {part.key_map.version}",
            }
            for part in release.parts
        ],
        "convert": convert_command(release),
    }


def _size(num_bytes: int | None) -> str:
    return "not stated" if num_bytes is None else f"{num_bytes:,} bytes"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def table(facts: list[dict[str, Any]]) -> "RenderableType":
    """One row for each release."""
    from rich.table import Table

    titles = ("name", "modalities", "frames", "pixels", "width", "parameters", "files", "size", "licence", "tasks")
    rendered = Table(*titles, pad_edge=False)
    rendered.columns[0].no_wrap = True
    for index in (2, 3, 4, 5, 6):
        rendered.columns[index].justify = "right"
    for one in facts:
        sizes = [part["num_bytes"] for part in one["parts"]]
        rendered.add_row(
            one["name"],
            ", ".join(one["modalities"]),
            str(one["num_frames"] or "-"),
            str(one["image_size"] or "-"),
            str(one["dim"]),
            _count(one["num_parameters"]),
            str(len(sizes)),
            "not stated" if None in sizes else f"{sum(sizes) / 1e9:.2f} GB",
            "; ".join(dict.fromkeys(part["licence"] for part in one["parts"])),
            one["tasks"],
        )
    return rendered


def card(one: dict[str, Any]) -> str:
    """One release in full."""
    shape = [f"{one['num_frames']} frames of {one['image_size']} x {one['image_size']} pixels"] * bool(
        one["num_frames"]
    )
    sound = [f"10 s of sound in {one['num_mels']} mel bins"] * bool(one["num_mels"])
    lines = [
        f"{one['name']}: {one['title']}",
        f"  takes       {', '.join(one['modalities'])}" + "".join(f"; {text}" for text in shape + sound),
        f"  gives       vectors of width {one['dim']}",
        f"  parameters  {one['num_parameters']:,}",
        f"  good for    {one['tasks']}",
        "  files",
    ]
    for part in one["parts"]:
        lines += [
            f"    {part['name']}: {part['file']}",
            f"      from {part['from']}",
            f"      {_size(part['num_bytes'])}; licence: {part['licence']}; key map {part['key_map']}",
        ]
    if one["vocabulary"]:
        lines += [f"    vocabulary ({one['tokenizer']}): {one['vocabulary']['file']}"]
        lines += [f"      from {one['vocabulary']['from']}"]
    return "\n".join([*lines, "  convert", f"    {one['convert']}"])


@command("zoo", keys=ZooConfig)
def main(cfg: ZooConfig) -> None:
    """Print all releases, or one."""
    from rich.console import Console

    from ivt2.checkpoint.zoo import RELEASES, find

    console = Console()
    facts = [describe(release) for release in (RELEASES.values() if cfg.name is None else [find(cfg.name)])]
    if cfg.format == "json":
        text = json.dumps(facts if cfg.name is None else facts[0], indent=1)
    elif cfg.name is not None:
        text = card(facts[0])
    else:
        if not console.is_terminal:
            console = Console(width=_WIDTH)
        console.print(table(facts))
        console.print(_MORE, soft_wrap=True, highlight=False, markup=False)
        return
    console.print(text, soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()

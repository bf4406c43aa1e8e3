"""Tiny datasets in the formats of the published ones: media files and annotations that each source reads.

The table ``SYNTHETIC_DATASETS`` has a line for every file of ``conf/source``, and for the tarballs of two other tools.
"""

import csv
import difflib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ivt2.data.synthetic import MOTIONS, SPLITS, Split, make_scenes
from ivt2.data.synthetic_files import Media, encode_media
from ivt2.data.synthetic_records import (
    Entry,
    bilingual,
    captioned,
    conversations,
    crawled,
    frame_folders,
    intervals,
    kinds_of_captions,
    labelled,
    mixed,
    one_of_all_classes,
    one_of_five,
    paragraphs,
    parts_of_videos,
    plain,
    several_of_all_classes,
    sound_classes,
    sounds_in_columns,
    sounds_in_json,
    sounds_in_lines,
    templated,
    unlabelled,
)
from ivt2.data.synthetic_sounds import make_sounds
from ivt2.data.synthetic_texts import TEMPLATES
from ivt2.errors import InputError


class _Format(NamedTuple):
    """How rows become the text of an annotation file."""

    suffix: Literal["json", "jsonl", "csv"]
    delimiter: str = ","
    header: bool = False

    def text(self, rows: Sequence[Mapping[str, Any]]) -> str:
        if self.suffix == "json":
            return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
        if self.suffix == "jsonl":
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self.delimiter, lineterminator="\n")
        writer.writerows([list(rows[0])] if self.header else [])
        writer.writerows(row.values() for row in rows)
        return text.getvalue()


_JSON, _JSONL, _CSV = _Format("json"), _Format("jsonl"), _Format("csv")
_LIST, _TABLE = _Format("csv", " "), _Format("csv", header=True)
_CLASSES = ("classes.txt", "".join(f"{motion}\n" for motion in MOTIONS))
_TEMPLATES = (
    "labels.json",
    json.dumps({name.replace("[", "").replace("]", ""): str(number) for number, name in enumerate(TEMPLATES)}) + "\n",
)


class _Layout(NamedTuple):
    """How one dataset is published.

    Args:
        records: from scenes (or sounds) to entries.
        form: of the annotation file; None where there is none.
        draw: makes the scenes or sounds.
        class_names: name and content of the file of class names.
        merged: several rows hold captions of the same file.
        captions: whether each sample has a caption.
        tarball: the files lie in tar files, which are shards already.
    """

    records: Callable[[Any], Iterator[Entry]]
    form: _Format | None
    draw: Callable[[Split, int, int], Sequence[Any]] = make_scenes
    class_names: tuple[str, str] | None = None
    merged: bool = False
    captions: bool = True
    tarball: bool = False


def _recognition(records: Callable[[Any], Iterator[Entry]], form: _Format) -> _Layout:
    return _Layout(records, form, class_names=_CLASSES, captions=False)


_KINETICS = _recognition(partial(labelled, path="{label}/{id}.mp4"), _CSV)
_NUMBERED_FRAMES = _recognition(partial(frame_folders, frames="img_{:05}.jpg"), _LIST)

SYNTHETIC_DATASETS: dict[str, _Layout] = {
    "jsonl": _Layout(plain, _JSONL),
    "folder": _Layout(partial(unlabelled, path="{number}/{id}.mp4"), None, captions=False),
    "folder_classes": _Layout(partial(unlabelled, path="{label}/{id}.mp4"), None, captions=False),
    **dict.fromkeys(("k400", "k600", "k700", "k710"), _KINETICS),
    "mit": _recognition(partial(labelled, path="{label}/{id}.mp4"), _LIST),
    "ucf101": _recognition(partial(labelled, path="{Label}/v_{Label}_g{number:02}_c01.avi", kind="avi"), _LIST),
    "hmdb51": _recognition(partial(labelled, path="{label}/{id}.avi", kind="avi"), _LIST),
    "activitynet": _recognition(partial(intervals, path="v_{id}.mp4"), _LIST),
    "hacs": _recognition(partial(intervals, path="{id}.mp4"), _LIST),
    "k_mash": _Layout(mixed, _LIST, captions=False),
    "ssv2": _Layout(templated, _JSON, class_names=_TEMPLATES),
    "ssv1": _recognition(partial(frame_folders, frames="{:05}.jpg"), _LIST),
    **dict.fromkeys(("ssv2_frames", "hmdb51_frames"), _NUMBERED_FRAMES),
    "msrvtt": _Layout(partial(captioned, lists=("train",)), _JSON),
    "msvd": _Layout(partial(captioned, lists=SPLITS), _JSON),
    "lsmdc": _Layout(partial(captioned, lists=()), _JSON),
    "didemo": _Layout(partial(paragraphs, path="{id}.mp4", num_scenes=1), _JSON),
    "activitynet_captions": _Layout(partial(paragraphs, path="v_{id}.mp4", num_scenes=2), _JSON),
    **dict.fromkeys(("vatex_en", "vatex_zh"), _Layout(bilingual, _JSON)),
    "audiocaps": _Layout(partial(sounds_in_json, lists=("val", "test")), _JSON, draw=make_sounds),
    "clotho": _Layout(partial(sounds_in_json, lists=SPLITS), _JSON, draw=make_sounds),
    "audiocaps_csv": _Layout(sounds_in_lines, _TABLE, draw=make_sounds, merged=True),
    "clotho_csv": _Layout(sounds_in_columns, _TABLE, draw=make_sounds),
    "msrvtt_mc": _Layout(one_of_five, _JSON, captions=False),
    "ssv2_mc": _Layout(one_of_all_classes, _JSON, captions=False),
    "charades_mc": _Layout(several_of_all_classes, _JSON, captions=False),
    "internvid": _Layout(parts_of_videos, _JSONL),
    "internvid_csv": _Layout(parts_of_videos, _TABLE),
    "internvid2": _Layout(kinds_of_captions, _JSON),
    "videochat2": _Layout(conversations, _JSON, captions=False),
    "esc50": _Layout(sound_classes, _TABLE, draw=make_sounds, captions=False),
    "video2dataset": _Layout(partial(crawled, kind="mp4", samples_per_shard=1_000), None, tarball=True),
    "img2dataset": _Layout(partial(crawled, kind="jpg", samples_per_shard=10_000), None, tarball=True),
}


@dataclass(frozen=True, kw_only=True)
class SyntheticDataset:
    """One split of a dataset, before anything is rendered.

    Args:
        split: which one.
        files: what lies in the media folder, by path; a path with a place for a number stands for several files.
        annotations: name and content of each annotation file.
        class_names: name and content of the file of class names, where the source takes one.
        num_classes: how many it has.
        merged: several records hold captions of the same file.
        captions: whether each sample has a caption.
        tarball: the first folder of each path is a tar file, and the media folder holds these.
    """

    split: Split
    files: Mapping[str, Media | str]
    annotations: Mapping[str, str]
    class_names: tuple[str, str] | None
    num_classes: int
    merged: bool
    captions: bool
    tarball: bool

    def file_names(self) -> list[str]:
        """Every path in the media folder."""
        if self.tarball:
            return sorted({f"{path.partition('/')[0]}.tar" for path in self.files})
        counts = [(path, 1 if isinstance(what, str) else what.num_files) for path, what in self.files.items()]
        return [path.format(number) for path, count in counts for number in range(1, count + 1)]


def describe_dataset(name: str, *, split: Split, num: int, seed: int) -> SyntheticDataset:
    """Draw scenes or sounds and put down what files and records a dataset has of them.

    Args:
        name: one of ``SYNTHETIC_DATASETS``.
        split: train, val or test; no combination of words occurs in two of them, whatever the seeds.
        num: scenes or sounds; a dataset with clips of several scenes has fewer files.
        seed: changes the scenes.

    Raises:
        InputError: when an argument cannot be used.
    """
    if (layout := SYNTHETIC_DATASETS.get(name)) is None:
        near = difflib.get_close_matches(name, SYNTHETIC_DATASETS, n=1)
        raise InputError(f"dataset={name}: no such dataset; give {near[0] if near else 'a name of conf/source'}")
    if split not in SPLITS or num < 1:
        raise InputError(f"split={split}, num={num}: give {', '.join(SPLITS)} and a number from 1")
    entries = list(layout.records(layout.draw(split, num, seed)))
    corpora: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries if layout.form else ():
        corpora.setdefault(entry.corpus, []).extend(entry.rows)
    return SyntheticDataset(
        split=split,
        files={path: what for entry in entries for path, what in entry.files.items()},
        annotations={
            f"{split}{corpus and '_'}{corpus}.{layout.form.suffix}": layout.form.text(rows)
            for corpus, rows in corpora.items()
            if layout.form
        },
        class_names=layout.class_names,
        num_classes=len(MOTIONS),
        merged=layout.merged,
        captions=layout.captions,
        tarball=layout.tarball,
    )


def write_dataset(
    dataset: SyntheticDataset,
    folder: str | Path,
    *,
    encode: Callable[[Media], Sequence[bytes]] = encode_media,
    on_file: Callable[[], None] = lambda: None,
) -> None:
    """Write media into ``<folder>/<split>`` and annotations beside it; what is there already stays.

    Args:
        dataset: what to write.
        folder: where; made when absent. It may hold other splits of the dataset.
        encode: renders a media file.
        on_file: called after each entry of ``dataset.files``.

    Raises:
        InputError: when the folder cannot be written, or holds files of something else.
    """
    folder = Path(folder)
    media_root = folder / dataset.split
    texts = dict([*dataset.annotations.items(), *([dataset.class_names] if dataset.class_names else [])])
    try:
        there = {path.relative_to(media_root).as_posix() for path in media_root.rglob("*") if path.is_file()}
        foreign = sorted(there - set(dataset.file_names()))
        if foreign:
            raise _others(media_root / foreign[0])
        for name, text in texts.items():
            if (folder / name).exists() and (folder / name).read_bytes() != text.encode():
                raise _others(folder / name)
        for name, content in _contents(dataset, encode, on_file):
            _put(media_root / name, content)
        for name, text in texts.items():  # last: a folder that has them is whole
            _put(folder / name, text.encode())
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error


def _contents(
    dataset: SyntheticDataset, encode: Callable[[Media], Sequence[bytes]], on_file: Callable[[], None]
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file of the media folder."""

    def rendered(paths: Iterator[str]) -> Iterator[tuple[str, bytes]]:
        for path in paths:
            what = dataset.files[path]
            contents = (what.encode(),) if isinstance(what, str) else encode(what)
            yield from ((path.format(number), content) for number, content in enumerate(contents, 1))
            on_file()

    if not dataset.tarball:
        yield from rendered(iter(dataset.files))
        return
    for shard, paths in groupby(dataset.files, key=lambda path: path.partition("/")[0]):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for path, content in rendered(paths):
                member = tarfile.TarInfo(path.partition("/")[2])
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        yield f"{shard}.tar", buffer.getvalue()


def _put(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    if file.exists():
        if file.read_bytes() != content:
            raise _others(file)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(file)


def _others(file: Path) -> InputError:
    return InputError(f"{file}: is of another dataset or made with other options; choose another folder")

"""Records of the embedded datasets: one function for each kind, from scenes or sounds to fields as they are published.

A function takes scenes (or sounds) and gives entries: media files, and the rows of the annotation file about them.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ivt2.data.synthetic import FPS, MOTIONS, Scene, combinations, uniform
from ivt2.data.synthetic_files import IMAGE_SIZE, Media
from ivt2.data.synthetic_sounds import TUNES, Sound
from ivt2.data.synthetic_texts import (
    CLASS_SENTENCES,
    MOTION_QUESTION,
    SEEN_IN_A_PICTURE,
    TEMPLATES,
    chinese,
    class_of,
    heard,
    question,
    seen,
    sentences,
    spoken,
    still,
    thing,
    turns,
)

NUM_FOLDS = 5

_NUM_OPTIONS = 5
_URL = "https://example.org"
_PICTURE_FACTS = {
    **dict.fromkeys(("width", "height", "original_width", "original_height"), IMAGE_SIZE),
    "exif": "{}",
}


class Entry(NamedTuple):
    """What a dataset holds about one scene, sound or row of scenes.

    Args:
        files: path of each file, with a place for the number where it stands for several; a file of text as such.
        rows: records of the annotation file.
        corpus: which annotation file of several; empty where there is one.
    """

    files: Mapping[str, Media | str]
    rows: Sequence[Mapping[str, Any]] = ()
    corpus: str = ""


def clip_id(item: Scene | Sound) -> str:
    """An id of eleven letters and digits, as YouTube's have."""
    split, _, number = item.key.partition("_")
    return f"syn{split[:2]}{number}"


def number_of(item: Scene | Sound) -> int:
    """Place of a scene or sound among those drawn."""
    return int(item.key.partition("_")[2])


def _path(template: str, scene: Scene) -> str:
    label = scene.combination.motion
    return template.format(id=clip_id(scene), label=label, Label=label.capitalize(), number=number_of(scene) + 1)


def _groups(scenes: Sequence[Scene], sizes: Sequence[int]) -> Iterator[tuple[Scene, ...]]:
    """Scenes that follow each other, in groups whose sizes repeat."""
    start = turn = 0
    while start < len(scenes):
        size = sizes[turn % len(sizes)]
        yield tuple(scenes[start : start + size])
        start, turn = start + size, turn + 1


def _spans(group: Sequence[Scene]) -> list[tuple[float, float]]:
    """Begin and end in seconds of each scene in the clip of all."""
    spans, start = [], 0
    for scene in group:
        spans.append((start / FPS, (start + scene.num_frames) / FPS))
        start += scene.num_frames
    return spans


def plain(scenes: Sequence[Scene]) -> Iterator[Entry]:
    """Everything that a record can hold, under its own name."""
    for scene in scenes:
        path = f"{scene.key}.mp4"
        facts = scene.facts()
        text, options, answer = question(scene, scene.variant // 4)
        row = {name: facts[name] for name in ("caption", "captions", "label", "start_s", "end_s", "duration_s")}
        row |= {"class_index": class_of(scene), "options": options, "answers": [options.index(answer)]}
        row |= {"turns": [{"q": text, "a": answer}], "attributes": facts["attributes"]}
        yield Entry({path: Media("mp4", (scene,))}, [{"file": path, **row}])


def unlabelled(scenes: Sequence[Scene], *, path: str) -> Iterator[Entry]:
    """Files alone; their folders may say what they are.

    Args:
        scenes: one a file.
        path: template with ``{id}``, ``{label}``, ``{Label}`` or ``{number}``.
    """
    for scene in scenes:
        yield Entry({_path(path, scene): Media("mp4", (scene,))})


def labelled(scenes: Sequence[Scene], *, path: str, kind: Literal["mp4", "avi"] = "mp4") -> Iterator[Entry]:
    """File and class; ``path`` as for ``unlabelled``."""
    for scene in scenes:
        file = _path(path, scene)
        yield Entry({file: Media(kind, (scene,))}, [{"path": file, "label": class_of(scene)}])


def intervals(scenes: Sequence[Scene], *, path: str) -> Iterator[Entry]:
    """Clips of two scenes, each of which is an interval of its class; ``path`` as for ``unlabelled``."""
    for group in _groups(scenes, (2,)):
        file, spans = _path(path, group[0]), _spans(group)
        rows = [
            {"path": file, "total_time": spans[-1][1], "start": start, "end": end, "label": class_of(scene)}
            for scene, (start, end) in zip(group, spans, strict=True)
        ]
        yield Entry({file: Media("mp4", group)}, rows)


def mixed(scenes: Sequence[Scene]) -> Iterator[Entry]:
    """Intervals of clips of two scenes (``hacs``), and by turns a whole clip of one (``k710``)."""
    for group in _groups(scenes, (2, 1)):
        source = "hacs" if len(group) > 1 else "k710"
        file, spans = f"{source}/{clip_id(group[0])}.mp4", _spans(group)
        whole = [(-1, -1)] if len(group) == 1 else spans
        rows = [
            {"source": source, "path": file, "total_time": spans[-1][1], "start": start, "end": end, "label": number}
            for (start, end), number in zip(whole, map(class_of, group), strict=True)
        ]
        yield Entry({file: Media("mp4", group)}, rows)


def templated(scenes: Sequence[Scene]) -> Iterator[Entry]:
    """A sentence, and the class as the template that the sentence fills in."""
    for scene in scenes:
        template, place = TEMPLATES[class_of(scene)], f"a {scene.combination.size} {thing(scene)}"
        number = str(number_of(scene) + 1)
        row = {"id": number, "label": template.replace("[something]", place), "template": template}
        yield Entry({f"{number}.webm": Media("webm", (scene,))}, [{**row, "placeholders": [place]}])


def frame_folders(scenes: Sequence[Scene], *, frames: str) -> Iterator[Entry]:
    """Folders of numbered JPEG files; ``frames`` is the template of their names."""
    for scene in scenes:
        folder = str(number_of(scene) + 1)
        row = {"folder": folder, "n_frames": scene.num_frames, "label": class_of(scene)}
        yield Entry({f"{folder}/{frames}": Media("frames", (scene,))}, [row])


def captioned(scenes: Sequence[Scene], *, lists: Collection[str]) -> Iterator[Entry]:
    """File and caption; in the splits ``lists`` all captions of the clip, in the others one."""
    for scene in scenes:
        file, captions = f"{clip_id(scene)}.mp4", list(scene.captions)
        row = {"video": file, "caption": captions if scene.combination.split in lists else captions[0]}
        yield Entry({file: Media("mp4", (scene,))}, [row])


def paragraphs(scenes: Sequence[Scene], *, path: str, num_scenes: int) -> Iterator[Entry]:
    """Clips of so many scenes, with the sentences about all of them; ``path`` as for ``unlabelled``."""
    for group in _groups(scenes, (num_scenes,)):
        file = _path(path, group[0])
        row = {"video": file, "caption": [text for scene in group for text in sentences(scene)]}
        yield Entry({file: Media("mp4", group)}, [row])


def bilingual(scenes: Sequence[Scene]) -> Iterator[Entry]:
    """English and Chinese captions of the same ten seconds of a video."""
    for scene in scenes:
        name = f"{clip_id(scene)}_{0:06}_{10:06}"
        row = {"videoID": name, "enCap": list(scene.captions), "chCap": chinese(scene)}
        yield Entry({f"{name}.mp4": Media("mp4", (scene,))}, [row])


def sounds_in_json(sounds: Sequence[Sound], *, lists: Collection[str]) -> Iterator[Entry]:
    """Sound and caption; in the splits ``lists`` all captions, in the others one."""
    for sound in sounds:
        file, captions = f"{clip_id(sound)}.wav", list(sound.captions)
        row = {"audio": file, "caption": captions if sound.key.partition("_")[0] in lists else captions[0]}
        yield Entry({file: Media("wav", sound)}, [row])


def sounds_in_lines(sounds: Sequence[Sound]) -> Iterator[Entry]:
    """A line for each caption: one in training, five in the other splits."""
    for sound in sounds:
        captions = sound.captions[: 1 if sound.key.startswith("train") else None]
        rows = [
            {
                "audiocap_id": 10 * number_of(sound) + place,
                "youtube_id": clip_id(sound),
                "start_time": 30,
                "caption": text,
            }
            for place, text in enumerate(captions)
        ]
        yield Entry({f"{clip_id(sound)}.wav": Media("wav", sound)}, rows)


def sounds_in_columns(sounds: Sequence[Sound]) -> Iterator[Entry]:
    """A column for each caption."""
    for sound in sounds:
        file = f"Four tones {number_of(sound) + 1}.wav"
        captions = {f"caption_{place}": text for place, text in enumerate(sound.captions, 1)}
        yield Entry({file: Media("wav", sound)}, [{"file_name": file, **captions}])


def sound_classes(sounds: Sequence[Sound]) -> Iterator[Entry]:
    """Class and fold; the class is the first tone."""
    for sound in sounds:
        number, target = number_of(sound), TUNES.index(sound.tunes[0])
        fold, recording = number % NUM_FOLDS + 1, 100_000 + number
        file = f"{fold}-{recording}-A-{target}.wav"
        row = {"filename": file, "fold": fold, "target": target, "category": sound.label, "esc10": False}
        yield Entry({file: Media("wav", sound)}, [{**row, "src_file": recording, "take": "A"}])


def one_of_five(scenes: Sequence[Scene]) -> Iterator[Entry]:
    """The clip's caption among four of the same wording that other combinations of the split would have."""
    for scene in scenes:
        own, eligible = scene.combination, combinations(scene.combination.split)
        draws = uniform(1 + 3 * _NUM_OPTIONS, "options", scene.key, *own)
        others = dict.fromkeys(eligible[int(len(eligible) * draw)] for draw in draws[1:])
        wrong = [replace(scene, combination=other).captions[0] for other in others if other != own]
        answer = int(_NUM_OPTIONS * draws[0])
        options = [*wrong[:answer], scene.captions[0], *wrong[answer : _NUM_OPTIONS - 1]]
        file = f"{clip_id(scene)}.mp4"
        yield Entry({file: Media("mp4", (scene,))}, [{"video": file, "caption": options, "answer": answer}])


def one_of_all_classes(scenes: Sequence[Scene]) -> Iterator[Entry]:
    """The clip's class among all of them."""
    for scene in scenes:
        file = f"{number_of(scene) + 1}.webm"
        row = {"video": file, "option": list(CLASS_SENTENCES), "answer": class_of(scene)}
        yield Entry({file: Media("webm", (scene,))}, [row])


def several_of_all_classes(scenes: Sequence[Scene]) -> Iterator[Entry]:
    """The classes of a clip of two scenes among all of them, as ones and zeros."""
    for group in _groups(scenes, (2,)):
        file, right = f"{clip_id(group[0])}.mp4", set(map(class_of, group))
        answer = [int(number in right) for number in range(len(MOTIONS))]
        row = {"video": file, "option": list(CLASS_SENTENCES), "answer": answer}
        yield Entry({file: Media("mp4", group)}, [row])


def parts_of_videos(scenes: Sequence[Scene]) -> Iterator[Entry]:
    """Captions of parts of a video, their times as h:mm:ss."""
    for group in _groups(scenes, (2,)):
        rows = [
            {
                "YoutubeID": clip_id(group[0]),
                "Start_timestamp": _clock(start),
                "End_timestamp": _clock(end),
                "Caption": scene.captions[0],
                "UMT_Score": 0.5,
            }
            for scene, (start, end) in zip(group, _spans(group), strict=True)
        ]
        yield Entry({f"{clip_id(group[0])}.mp4": Media("mp4", group)}, rows)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes) // 60:02}:{int(minutes) % 60:02}:{rest:06.3f}"


def kinds_of_captions(scenes: Sequence[Scene]) -> Iterator[Entry]:
    """Captions of what is seen, heard and said in parts of a video, and fused ones; in every third no one speaks."""
    for group in _groups(scenes, (2,)):
        file = f"{clip_id(group[0])}.mp4"
        rows = [
            {
                "video": file,
                "start": start,
                "end": end,
                "selected_video_caption": seen(scene),
                "selected_audio_caption": heard(scene),
                "asr_captions": "" if number_of(scene) % 3 == 2 else spoken(scene),
                "av_captions": f"{seen(scene)} and {heard(scene)}",
                "avs_captions": list(scene.captions),
            }
            for scene, (start, end) in zip(group, _spans(group), strict=True)
        ]
        yield Entry({file: Media("mp4", group)}, rows)


def conversations(scenes: Sequence[Scene]) -> Iterator[Entry]:
    """Three corpora: talk about parts of videos, talk about pictures, and captions of clips."""
    for group in _groups(scenes, (2, 1)):
        file = f"video/{clip_id(group[0])}.mp4"
        rows: list[dict[str, Any]] = []
        for scene, (start, end) in zip(group, _spans(group), strict=True):
            numbers = (MOTION_QUESTION, SEEN_IN_A_PICTURE[scene.variant % 6])
            talk = {"video": file, "QA": turns(scene, numbers, "Watch the clip and answer.")}
            rows.append(talk if len(group) == 1 else {**talk, "start": start, "end": end})
        yield Entry({file: Media("mp4", group)}, rows, "video")
    for scene in scenes:
        image, numbers = f"image/{clip_id(scene)}.jpg", (scene.variant % 3, 4 + scene.variant % 2)
        talk = {"image": image, "QA": turns(scene, numbers, "Look at the picture and answer.")}
        yield Entry({image: Media("jpg", (scene,))}, [talk], "image")
        file = f"caption/{clip_id(scene)}.mp4"
        yield Entry({file: Media("mp4", (scene,))}, [{"video": file, "caption": scene.captions[0]}], "caption")


def crawled(scenes: Sequence[Scene], *, kind: Literal["mp4", "jpg"], samples_per_shard: int) -> Iterator[Entry]:
    """Clips or pictures with text and facts of their download, named by shard and place in it.

    Args:
        scenes: one a sample.
        kind: of the media.
        samples_per_shard: a power of ten, which the keys depend on.
    """
    digits = len(str(samples_per_shard)) - 1
    for scene in scenes:
        shard, place = divmod(number_of(scene), samples_per_shard)
        key = f"{shard:05}{place:0{digits}}"
        caption = still(scene) if kind == "jpg" else scene.captions[0]
        meta: dict[str, Any] = {
            "url": f"{_URL}/{clip_id(scene)}.{kind}",
            "caption": caption,
            "key": key,
            "status": "success",
        }
        meta |= {"error_message": None, **(_PICTURE_FACTS if kind == "jpg" else {"yt_meta_dict": None})}
        name = f"{shard:05}/{key}"
        files: dict[str, Media | str] = {f"{name}.{kind}": Media(kind, (scene,)), f"{name}.txt": caption}
        files[f"{name}.json"] = json.dumps(meta, indent=4)
        yield Entry(files)

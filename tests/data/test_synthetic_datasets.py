"""Whole: the embedded variant of every dataset goes through its source and the packer, and nothing is lost or changed.

What the samples must say is spelled out here from the words of the scenes; what they show is compared with the scene.
"""

import csv
import io
import json
import tarfile
from dataclasses import replace
from functools import cache
from unittest.mock import ANY

import av
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ivt2.cli.door import CONF
from ivt2.data.annotations import MEMBER_NAMES, captions_of, facts_of
from ivt2.data.annotations_merged import MergedAnnotations
from ivt2.data.audio import decode_audio
from ivt2.data.decode import decode_image, decode_video
from ivt2.data.ledger import Ledger
from ivt2.data.packing import pack
from ivt2.data.preparation import Preparation
from ivt2.data.shards import ShardSet
from ivt2.data.synthetic import FPS, MOTIONS, SPLITS, VOCABULARY_FILE, make_scenes
from ivt2.data.synthetic_datasets import SYNTHETIC_DATASETS, describe_dataset, write_dataset
from ivt2.data.synthetic_files import Media, encode_media
from ivt2.data.synthetic_records import crawled
from ivt2.data.synthetic_render import render, waveform
from ivt2.data.synthetic_sounds import Sound, make_sounds, sound_waveform
from ivt2.data.text import normalize_caption
from ivt2.errors import InputError

NUM, SEED = 5, 3
SCENES = make_scenes("train", NUM, SEED)
SOUNDS = make_sounds("train", NUM, SEED)
PAIRS = [SCENES[0:2], SCENES[2:4], SCENES[4:5]]
TALK = [SCENES[0:2], SCENES[2:3], SCENES[3:5]]
TARBALLS = {"video2dataset", "img2dataset"}

DOES = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows",
    "shrink": "shrinks",
}
DOES_ALSO = {
    "left": "slides leftwards",
    "right": "slides rightwards",
    "up": "rises",
    "down": "falls",
    "grow": "expands",
    "shrink": "contracts",
}
ZH = dict(zip(("left of", "right of", "above", "below"), ("左边", "右边", "上方", "下方"), strict=True))
ZH |= {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "white": "白色"}
ZH |= {"ring": "圆环", "square": "方块", "triangle": "三角形", "cross": "十字", "small": "小", "big": "大"}
ZH |= {"left": "向左移动", "right": "向右移动", "up": "向上移动", "down": "向下移动", "grow": "变大", "shrink": "变小"}
ZH |= {"low": "低音", "middle": "中音", "high": "高音"}

encode = cache(encode_media)
drawn = cache(lambda scene: render(scene, 64))


def source_of(name, dataset, folder, file=""):
    """The source of ``conf/source/<name>.yaml``, with the class names that were written."""
    cfg = OmegaConf.load(CONF / "source" / f"{name}.yaml")
    if "source" in cfg:
        return instantiate(OmegaConf.merge(cfg, {"media_root": str(folder / dataset.split)}).source, _convert_="all")
    given = {"annotations": str(folder / file)}
    if dataset.class_names:
        names = str(folder / dataset.class_names[0])
        given["record"] = {"num_classes": dataset.num_classes, "class_names": names}
    return instantiate(OmegaConf.merge(cfg, given), _convert_="all")


def packed(source, media_root, folder):
    """Samples of a source, of which none may be left out."""
    ledger = Ledger(0)
    pack(source, media_root, folder, preparation=Preparation(), ledger=ledger, num_processes=1)
    shards = ShardSet.open(folder)
    assert ledger.seen == source.count() == len(shards)
    return [shards.read(index) for index in range(len(shards))]


def one(scene, **says):
    return says, scene


def captioned(shown, *captions, **says):
    return {"caption": captions[0], "captions": list(captions), **says}, shown


def labelled(scene, **says):
    return {"label": scene.combination.motion, "class_index": MOTIONS.index(scene.combination.motion), **says}, scene


def parts(group):
    """Each scene of a clip with its begin and end in seconds."""
    ends = np.cumsum([scene.num_frames for scene in group]).tolist()
    return [
        (scene, {"start_s": (end - scene.num_frames) / FPS, "end_s": end / FPS})
        for scene, end in zip(group, ends, strict=True)
    ]


def in_pairs(make):
    return [make(scene, times) for group in PAIRS for scene, times in parts(group)]


def looks(scene):
    words = scene.combination
    first = f"{words.size} {words.colour} {words.shape}"
    return f"a {first} {words.relation} a {words.second_colour} {words.second_shape}"


def thing(scene):
    return f"{scene.combination.colour} {scene.combination.shape}"


def does(scene, words=DOES):
    return words[scene.combination.motion]


def paragraph(group):
    texts = [
        f"There is {looks(scene)}. The {thing(scene)} {does(scene)}. A {scene.tone} tone sounds." for scene in group
    ]
    return " ".join(texts)


def chinese(scene):
    words = scene.combination
    said = [ZH[word] for word in (*words, scene.tone)]
    colour, shape, size, motion, second_colour, second_shape, where, tone = said
    return [
        f"{second_colour}{second_shape}的{where}有一个{size}的{colour}{shape}，它{motion}，声音是{tone}",  # noqa: RUF001
        f"伴着{tone}，{second_colour}{second_shape}{where}的那个{size}的{colour}{shape}{motion}",  # noqa: RUF001
    ]


def everything(scene):
    facts = scene.facts()
    says = {name: facts[name] for name in ("caption", "captions", "label", "start_s", "end_s")}
    right = facts["answers"].index(facts["answer"])
    turn = {"i": "", "q": facts["question"], "a": facts["answer"]}
    return {**says, **labelled(scene)[0], "options": facts["answers"], "answers": [right], "turns": [turn]}, None


def template(scene):
    words = scene.combination
    sentence = f"a {words.size} {thing(scene)} {does(scene)}"
    return captioned(scene, sentence, label=f"something {does(scene)}", class_index=MOTIONS.index(words.motion))


def several_right(group):
    right = sorted({MOTIONS.index(scene.combination.motion) for scene in group})
    return {"options": [f"the object {DOES[motion]}" for motion in MOTIONS], "answers": right}, group


def kinds(scene, times):
    seen, heard = f"{looks(scene)} {does(scene)}", f"a {scene.tone} tone sounds"
    return captioned(scene, *scene.captions, f"{seen} and {heard}", seen, heard, **times)


def sounding(sound):
    return {"label": f"{sound.tunes[0]}_tone", "class_index": SOUND_CLASSES.index(sound.tunes[0])}, sound


SOUND_CLASSES = ["low", "middle", "high", "rising", "falling"]
LABELS = [labelled(scene) for scene in SCENES]
INTERVALS = in_pairs(lambda scene, times: labelled(scene, **times))
PARTS = in_pairs(lambda scene, times: captioned(scene, scene.captions[0], **times))
CAPTIONS = [captioned(scene, *scene.captions) for scene in SCENES]
SOUND_CAPTIONS = [captioned(sound, *sound.captions) for sound in SOUNDS]
SOUND_CAPTION = [captioned(sound, sound.captions[0]) for sound in SOUNDS]
CAPTION = [captioned(scene, scene.captions[0]) for scene in SCENES]
RECORDS = {
    "jsonl": [everything(scene) for scene in SCENES],
    "folder": [one(scene) for scene in SCENES],
    "folder_classes": sorted(
        [labelled(scene, class_index=ANY) for scene in SCENES], key=lambda pair: (pair[0]["label"], pair[1].key)
    ),
    **dict.fromkeys(("k400", "k600", "k700", "k710", "mit", "hmdb51", "ucf101"), LABELS),
    **dict.fromkeys(("ssv1", "ssv2_frames", "hmdb51_frames"), LABELS),
    **dict.fromkeys(("activitynet", "hacs"), INTERVALS),
    "k_mash": [
        ({"class_index": MOTIONS.index(scene.combination.motion), **(times if len(group) > 1 else {})}, scene)
        for group in TALK
        for scene, times in parts(group)
    ],
    "ssv2": [template(scene) for scene in SCENES],
    **dict.fromkeys(("msrvtt", "msvd", "vatex_en"), CAPTIONS),
    "vatex_zh": [captioned(scene, *chinese(scene)) for scene in SCENES],
    "lsmdc": CAPTION,
    "didemo": [captioned(scene, paragraph([scene]), end_s=30.0) for scene in SCENES],
    "activitynet_captions": [captioned(tuple(group), paragraph(group)) for group in PAIRS],
    **dict.fromkeys(("clotho", "clotho_csv"), SOUND_CAPTIONS),
    **dict.fromkeys(("audiocaps", "audiocaps_csv"), SOUND_CAPTION),
    "msrvtt_mc": [one(scene, options=ANY, answers=ANY) for scene in SCENES],
    "ssv2_mc": [(several_right([scene])[0], scene) for scene in SCENES],
    "charades_mc": [several_right(tuple(group)) for group in PAIRS],
    **dict.fromkeys(("internvid", "internvid_csv"), PARTS),
    "internvid2": in_pairs(kinds),
    "esc50": [sounding(sound) for sound in SOUNDS],
    "videochat2 video": [
        one(scene, turns=ANY, **(times if len(group) > 1 else {})) for group in TALK for scene, times in parts(group)
    ],
    "videochat2 image": [one((scene, "still"), turns=ANY) for scene in SCENES],
    "videochat2 caption": CAPTION,
    "video2dataset": CAPTION,
    "img2dataset": [captioned((scene, "still"), looks(scene)) for scene in SCENES],
}


def test_every_source_has_an_embedded_variant_and_every_variant_a_case():
    assert SYNTHETIC_DATASETS.keys() == {file.stem for file in (CONF / "source").glob("*.yaml")} | TARBALLS
    assert {case.partition(" ")[0] for case in RECORDS} == SYNTHETIC_DATASETS.keys()


def likeness(pixels, expected):
    """Peak signal-to-noise ratio in dB."""
    return 10 * np.log10(255**2 / np.square(pixels.astype(float) - expected).mean())


def check_media(members, facts, shown):
    """The sample's media, between its times, show and play this and nothing else."""
    (data,) = (content for kind, content in members.items() if kind not in {"json", "txt"})
    if isinstance(shown, Sound):
        np.testing.assert_allclose(decode_audio(data).numpy(), sound_waveform(shown) / 32768, atol=1e-6)
        return
    if isinstance(shown, tuple) and shown[1:] == ("still",):
        scene = shown[0]
        frames, expected = decode_image(data), drawn(scene)[[(scene.start_frame + scene.end_frame) // 2]]
    else:
        scenes = shown if isinstance(shown, tuple | list) else [shown]
        expected = np.concatenate([drawn(scene) for scene in scenes])
        times = {"start_s": facts.get("start_s"), "end_s": facts.get("end_s")}
        frames = decode_video(data, lambda length, _: range(length), **times).frames
    assert tuple(frames.shape) == (len(expected), 3, 64, 64)
    assert likeness(frames.numpy(), expected.transpose(0, 3, 1, 2)) > 25


@pytest.mark.parametrize("case", RECORDS)
def test_a_variant_goes_through_its_source_and_the_packer(case, tmp_path):
    name, _, corpus = case.partition(" ")
    dataset = describe_dataset(name, split="train", num=NUM, seed=SEED)
    write_dataset(dataset, tmp_path, encode=encode)
    if name in TARBALLS:
        shards = ShardSet.open(tmp_path / "train")
        samples = [shards.read(index) for index in range(len(shards))]
    else:
        file = next((file for file in dataset.annotations if corpus in file), "")
        samples = packed(source_of(name, dataset, tmp_path, file), tmp_path / "train", tmp_path / "shards")
    assert len(samples) == len(RECORDS[case])
    for sample, (says, shown) in zip(samples, RECORDS[case], strict=True):
        facts = facts_of(sample.members)
        if name in TARBALLS:
            facts["captions"] = captions_of(sample.members)
            assert sample.members["txt"].decode() == says["caption"]
        assert {key: value for key, value in facts.items() if key in MEMBER_NAMES} == says
        if shown is not None:
            check_media(sample.members, facts, shown)


def records(name, **changed):
    """Rows of the annotations, by corpus, of a json dataset."""
    dataset = describe_dataset(name, **{"split": "train", "num": NUM, "seed": SEED, **changed})
    return [json.loads(text) for text in dataset.annotations.values()]


def test_the_wrong_options_are_captions_of_other_combinations():
    ((*rows,),) = records("msrvtt_mc", split="val", num=400)
    scenes = make_scenes("val", 400, SEED)
    for row, scene in zip(rows, scenes, strict=True):
        assert len(set(row["caption"])) == 5
        assert row["caption"].index(scene.captions[0]) == row["answer"]
        assert set(row["caption"]) & set(scene.captions) == {scene.captions[0]}
    assert {row["answer"] for row in rows} == set(range(5))


def test_conversations_ask_for_what_the_media_show():
    video, image, _ = records("videochat2", num=40)
    scenes = make_scenes("train", 40, SEED)
    for row, scene in zip(video, scenes, strict=True):
        first, second = row["QA"]
        assert first == {"i": ANY, "q": f"what does the {thing(scene)} do?", "a": does(scene)}
        assert f" {second['a']} " in f"{second['q']} "
        assert second["a"].startswith("(")
        assert "tone" not in second["q"]
    for row, scene in zip(image, scenes, strict=True):
        answers = [turn["a"].rpartition(") ")[2] for turn in row["QA"]]
        assert set(answers) <= set(scene.combination)
        assert not {"tone", "do?"} & set(" ".join(turn["q"] for turn in row["QA"]).split())


def test_kinds_of_captions_stay_apart_and_some_clips_have_no_speech():
    ((*rows,),) = records("internvid2")
    spoken = [f"the {thing(scene)} {does(scene, DOES_ALSO)}" for scene in SCENES]
    assert [row["asr_captions"] for row in rows] == [spoken[0], spoken[1], "", spoken[3], spoken[4]]


def test_evaluation_has_the_captions_that_the_published_splits_have():
    ((first, *_),) = records("msrvtt", split="test")
    assert first["caption"] == make_scenes("test", 1, SEED)[0].captions[0]
    ((first, *_),) = records("audiocaps", split="test")
    assert first["caption"] == list(make_sounds("test", 1, SEED)[0].captions)


def test_lines_of_the_same_sound_are_merged_to_one_sample(tmp_path):
    dataset = describe_dataset("audiocaps_csv", split="val", num=2, seed=SEED)
    write_dataset(dataset, tmp_path, encode=encode)
    source = source_of("audiocaps_csv", dataset, tmp_path, "val.csv")
    assert source.count() == 10
    assert [record.captions for record in MergedAnnotations(source)] == [
        sound.captions for sound in make_sounds("val", 2, SEED)
    ]


def test_whole_clips_and_intervals_stand_beside_each_other_in_k_mash():
    (text,) = describe_dataset("k_mash", split="train", num=NUM, seed=SEED).annotations.values()
    rows = list(csv.reader(io.StringIO(text), delimiter=" "))
    assert [row[0] for row in rows] == ["hacs", "hacs", "k710", "hacs", "hacs"]
    assert rows[2][3:5] == ["-1", "-1"]
    assert [row[1].partition("/")[0] for row in rows] == [row[0] for row in rows]


def test_folds_take_turns():
    (text,) = describe_dataset("esc50", split="train", num=7, seed=SEED).annotations.values()
    assert [row["fold"] for row in csv.DictReader(io.StringIO(text))] == ["1", "2", "3", "4", "5", "1", "2"]


def test_no_combination_of_sounds_is_in_two_splits_whatever_the_seed():
    every = [{sound.tunes for seed in (0, 1) for sound in make_sounds(split, 60, seed)} for split in SPLITS]
    assert all(len(tunes) > 60 for tunes in every)
    assert not every[0] & every[1]
    assert not every[0] & every[2]
    assert not every[1] & every[2]


def test_a_sound_does_not_depend_on_how_many_are_drawn():
    assert make_sounds("train", 600, SEED)[:NUM] == SOUNDS
    assert len({sound.captions for sound in make_sounds("val", 70, 0)}) == 70
    with pytest.raises(InputError, match="the val split has 73 combinations"):
        make_sounds("val", 74, 0)


def centre_hz(samples):
    """Centre of gravity of the power spectrum."""
    power = np.square(np.abs(np.fft.rfft(samples)))
    return power @ np.arange(len(power)) / power.sum() * 16_000 / len(samples)


def test_any_of_the_paraphrases_of_a_sound_may_stand_first():
    whole = replace(SOUNDS[0], variant=0).captions
    assert [replace(SOUNDS[0], variant=variant).captions[0] for variant in range(5)] == list(whole)
    assert {sound.variant for sound in make_sounds("train", 60, SEED)} == set(range(5))


def test_the_sound_of_a_clip_of_two_scenes_goes_with_its_pictures():
    (data,) = encode(Media("mp4", tuple(SCENES[:2])))
    expected = np.concatenate([waveform(scene) for scene in SCENES[:2]])
    assert np.corrcoef(decode_audio(data)[: len(expected)], expected)[0, 1] > 0.98


def test_the_tones_sound_in_the_order_of_the_caption():
    middles = {"low": 250, "middle": 800, "high": 2000}
    for sound in SOUNDS:
        samples = sound_waveform(sound)
        assert len(samples) == 32_000
        for tune, (start, length) in zip(sound.tunes, sound.spans, strict=True):
            tone = samples[start : start + length]
            if tune in middles:
                peak_hz = np.abs(np.fft.rfft(tone)).argmax() * 16_000 / length
                assert peak_hz == pytest.approx(middles[tune], abs=4)
            else:
                first, second = (centre_hz(half) for half in np.array_split(tone, 2))
                assert (second > 1.2 * first) == (tune == "rising")
                assert (first > 1.2 * second) == (tune == "falling")
        silence = np.ones(len(samples), bool)
        for start, length in sound.spans:
            silence[start : start + length] = False
        assert silence.sum() > 3000
        assert not samples[silence].any()
        assert np.abs(samples).max() > 3000


def test_english_captions_stay_within_the_words_of_the_vocabulary():
    known = set(VOCABULARY_FILE.read_text().split())
    texts = [text for sound in make_sounds("train", 400, 0) for text in sound.captions]
    for name in ("didemo", "internvid2", "ssv2_mc"):
        for row in records(name, num=200)[0]:
            values = [value for key, value in row.items() if key != "video"]
            lists = [value if isinstance(value, list) else [value] for value in values]
            texts += [text for several in lists for text in several if isinstance(text, str)]
    assert {word for text in texts for word in normalize_caption(text).split()} - known == set()


@pytest.mark.parametrize("kind", ["mp4", "webm", "avi", "frames", "jpg", "wav"])
def test_equal_scenes_give_equal_files(kind):
    media = Media(kind, SOUNDS[0] if kind == "wav" else (SCENES[0],))
    assert encode_media(media) == encode_media(media)
    assert len(encode_media(media)) == media.num_files


@pytest.mark.parametrize("kind", ["webm", "avi"])
def test_silent_clips_have_the_codec_of_their_dataset_and_key_frames(kind):
    with av.open(io.BytesIO(encode(Media(kind, (SCENES[0],)))[0])) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].codec_context.name == {"webm": "vp8", "avi": "mpeg4"}[kind]
        assert container.streams.video[0].average_rate == FPS
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert len(packets) == SCENES[0].num_frames
    assert all(packet.is_keyframe for packet in packets[::8])


def test_tarballs_are_laid_out_as_their_tools_do(tmp_path):
    scenes = [SCENES[0], replace(SCENES[1], key="train_001000")]
    entries = crawled(scenes, kind="mp4", samples_per_shard=1000)
    files = {path: what for entry in entries for path, what in entry.files.items()}
    dataset = replace(describe_dataset("video2dataset", split="train", num=1, seed=0), files=files)
    write_dataset(dataset, tmp_path, encode=encode)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["00000.tar", "00001.tar"]
    with tarfile.open(tmp_path / "train" / "00001.tar") as tar:
        assert tar.getnames() == ["00001000.mp4", "00001000.txt", "00001000.json"]
        meta = json.load(tar.extractfile("00001000.json"))
    assert (meta["key"], meta["status"], meta["error_message"]) == ("00001000", "success", None)
    meta = json.loads(describe_dataset("img2dataset", split="train", num=1, seed=0).files["00000/000000000.json"])
    assert meta.keys() >= {"url", "caption", "key", "status", "error_message", "width", "height", "original_width"}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(folder, name="ssv2_frames", **changed):
    arguments = {"split": "train", "num": 2, "seed": SEED, **changed}
    write_dataset(describe_dataset(name, **arguments), folder, encode=encode)
    return contents(folder)


def test_writing_again_changes_nothing_and_other_splits_stand_beside_it(tmp_path):
    first = written(tmp_path)
    assert written(tmp_path) == first
    assert written(tmp_path, split="val").items() > first.items()
    assert not [path for path in first if path.name.startswith(".")]


@pytest.mark.parametrize("changed", [{"num": 1}, {"num": 3}, {"seed": 4}, {"name": "hmdb51"}, {"name": "folder"}])
def test_a_folder_of_something_else_is_left_as_it_is(changed, tmp_path):
    first = written(tmp_path)
    with pytest.raises(InputError, match="choose another folder"):
        written(tmp_path, **changed)
    assert contents(tmp_path) == first


def test_a_file_of_the_user_is_never_replaced(tmp_path):
    (tmp_path / "train" / "1").mkdir(parents=True)
    (tmp_path / "train" / "1" / "img_00001.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"img_00001.jpg: is of another dataset"):
        written(tmp_path)
    (tmp_path / "train.csv").write_text("precious")
    with pytest.raises(InputError, match=r"train.csv: is of another dataset"):
        written(tmp_path)
    assert set(contents(tmp_path).values()) == {b"precious"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "k40"}, "dataset=k40: no such dataset; give k400"),
        ({"name": "zzz"}, "give a name of conf/source"),
        ({"num": 0}, "num=0"),
        ({"split": "dev"}, "split=dev"),
        ({"split": "val", "num": 10_000}, "the val split has"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(changed, message):
    with pytest.raises(InputError, match=message):
        describe_dataset(**{"name": "k400", "split": "train", "num": 2, "seed": 0, **changed})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        written(tmp_path / "file" / "folder")

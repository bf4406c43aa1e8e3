import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ivt2.data.annotations import Annotation
from ivt2.data.audio import decode_audio
from ivt2.data.decode import decode_video
from ivt2.data.ledger import SampleError
from ivt2.data.preparation import Preparation, VideoPreset
from ivt2.errors import InputError
from tests.data.clips import encode, encode_audio, image_bytes, picture, tone, wav

CHOICES = sorted((Path(__file__).parents[2] / "conf" / "preparation").glob("*.yaml"))
SMALL = VideoPreset(short_side=32, gop=5)
EVERYTHING = Preparation(trim=True, video=SMALL, audio=True)


@pytest.fixture(scope="module")
def sounding():
    """Two seconds of pictures with sound as long."""
    return encode(num_frames=50, container="matroska", audio_codec="flac")


def record(**values):
    return Annotation(file="a/clip.mkv", captions=("A dog runs.",), **values)


def num_frames(data):
    return decode_video(data, lambda num_frames, fps: [0]).num_frames


def reason_of(preparation, kind, data, **values):
    with pytest.raises(SampleError) as caught:
        preparation(kind, data, record(**values))
    return caught.value.reason


@pytest.mark.parametrize("kind", ["mp4", "gif", "wav", "mp3", "jpg", "npy"])
def test_nothing_asked_for_leaves_bytes_and_record_unread(kind):
    data, said = b"no media at all", record(start_s=1.0, end_s=2.0, facts={"duration_s": 9.0})
    assert Preparation()(kind, data, said) == ({kind: data}, said)


def test_trim_needs_a_preset():
    with pytest.raises(InputError, match="choose a preset"):
        Preparation(trim=True)
    with pytest.raises(InputError, match="choose a preset"):
        Preparation(trim=True, audio=True)


def test_video_and_its_sound_are_cut_and_encoded(sounding):
    facts = {"duration_s": 2.0, "id": 7}
    members, said = EVERYTHING("mkv", sounding, record(start_s=0.5, end_s=1.3, label="run", facts=facts))
    assert list(members) == ["mp4", "flac"]
    assert num_frames(members["mp4"]) == 20  # at 0.52 to 1.28 s
    video = decode_video(members["mp4"], lambda num_frames, fps: range(num_frames))
    assert tuple(video.frames.shape) == (20, 3, 32, 32)
    assert decode_audio(members["mp4"]) is None
    np.testing.assert_allclose(decode_audio(members["flac"]), tone(2.0)[8000:20_800], atol=1e-4)
    assert said == record(
        label="run",
        facts={
            "duration_s": 0.8,
            "id": 7,
            "source_duration_s": 2.0,
            "source_start_s": 0.5,
            "source_end_s": 1.3,
        },
    )
    assert said.to_member()["source_end_s"] == 1.3
    assert "start_s" not in said.to_member()


@pytest.mark.parametrize(
    ("values", "expected_frames", "facts"),
    [
        ({}, 50, {}),
        ({"start_s": 1.0}, 25, {"source_start_s": 1.0}),
        ({"end_s": 0.4}, 10, {"source_end_s": 0.4}),
        ({"start_s": 1.6, "end_s": 9.0}, 10, {"source_start_s": 1.6, "source_end_s": 9.0}),
    ],
)
def test_open_ends_are_those_of_the_clip(sounding, values, expected_frames, facts):
    members, said = EVERYTHING("mkv", sounding, record(**values))
    assert num_frames(members["mp4"]) == expected_frames
    assert len(decode_audio(members["flac"])) == expected_frames * 640
    assert said == record(facts={**facts, "duration_s": expected_frames / 25})


def test_without_trim_the_times_of_the_record_stay(sounding):
    members, said = Preparation(video=SMALL)("mkv", sounding, record(start_s=0.5, end_s=1.3))
    assert list(members) == ["mp4"]
    assert num_frames(members["mp4"]) == 50
    assert said == record(start_s=0.5, end_s=1.3, facts={"duration_s": 2.0})


def test_sound_alone_leaves_the_video_as_it_is(sounding):
    said = record(start_s=0.5, end_s=1.3)
    members, same = Preparation(audio=True)("mkv", sounding, said)
    assert members["mkv"] is sounding
    np.testing.assert_allclose(decode_audio(members["flac"]), tone(2.0), atol=1e-4)
    assert same == said


def test_video_without_sound_there_gets_no_sound_member(sounding):
    assert list(Preparation(audio=True)("mp4", encode(), record())[0]) == ["mp4"]
    pictures_go_on = encode(num_frames=50, ticks=[*range(49), 100], container="matroska", audio_codec="flac")
    members, _ = EVERYTHING("mkv", pictures_go_on, record(start_s=3.0))
    assert list(members) == ["mp4"]
    assert list(EVERYTHING("mkv", pictures_go_on, record(start_s=1.0))[0]) == ["mp4", "flac"]


@pytest.mark.parametrize(("kind", "data"), [("wav", wav(tone(1.0))), ("flac", encode_audio("flac", "flac"))])
def test_audio_file_is_cut_to_the_sample(kind, data):
    members, said = EVERYTHING(kind, data, record(start_s=0.25, end_s=0.5))
    assert list(members) == ["flac"]
    np.testing.assert_allclose(decode_audio(members["flac"]), tone(1.0)[4000:8000], atol=1e-4)
    assert said == record(facts={"duration_s": 0.25, "source_start_s": 0.25, "source_end_s": 0.5})


def test_whole_audio_file_and_image_stay_as_they_are():
    sound, image = wav(tone(0.1)), image_bytes(picture(0, 300, 400))
    assert EVERYTHING("wav", sound, record()) == ({"wav": sound}, record())
    said = record(start_s=1.0, end_s=2.0)
    assert EVERYTHING("png", image, said) == ({"png": image}, said)


@pytest.mark.parametrize(
    ("start_s", "end_s", "reason"),
    [
        (2.0, None, "segment_outside"),
        (60.0, 61.0, "segment_outside"),
        (1.0, 1.0, "segment_invalid"),
        (-1.0, 1.0, "segment_invalid"),
        (math.nan, 1.0, "segment_invalid"),
        (0.001, 0.002, "empty"),
    ],
)
def test_part_that_is_not_there(sounding, start_s, end_s, reason):
    assert reason_of(EVERYTHING, "mkv", sounding, start_s=start_s, end_s=end_s) == reason


def test_files_that_cannot_be_used():
    assert reason_of(EVERYTHING, "wav", wav(tone(1.0)), start_s=2.0) == "segment_outside"
    assert reason_of(EVERYTHING, "mp3", encode(), start_s=0.1) == "not_audio"
    assert reason_of(EVERYTHING, "mp4", b"<html>" * 50) == "not_video"
    assert reason_of(EVERYTHING, "mp4", wav(tone(0.1))) == "not_video"
    assert reason_of(Preparation(audio=True), "mp4", encode(audio_codec="aac")[:-200]) == "truncated"
    assert reason_of(Preparation(video=SMALL), "mp4", encode_audio("aac", "mp4")) == "no_video_stream"


def test_equal_input_gives_equal_members(sounding):
    first, _ = EVERYTHING("mkv", sounding, record(start_s=0.5))
    again, _ = pickle.loads(pickle.dumps(EVERYTHING))("mkv", sounding, record(start_s=0.5))
    assert first == again


def test_facts_tell_preparations_apart():
    others = [Preparation(), Preparation(audio=True), Preparation(video=SMALL), Preparation(video=VideoPreset(gop=5))]
    texts = {json.dumps(preparation.facts(), sort_keys=True) for preparation in [*others, EVERYTHING]}
    assert len(texts) == 5
    assert Preparation(video=VideoPreset(short_side=32, gop=5)).facts() == Preparation(video=SMALL).facts()


def test_choices_of_the_configuration():
    assert {file.stem: instantiate(OmegaConf.load(file)) for file in CHOICES} == {
        "keep": Preparation(),
        "sound": Preparation(audio=True),
        "sparse": Preparation(video=VideoPreset(), audio=True),
    }

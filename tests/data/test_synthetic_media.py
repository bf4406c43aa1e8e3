"""Exact and oracle: the mp4 members read back by PyAV show and play what was encoded."""

import io

import av
import numpy as np
import pytest

from ivt2.data.synthetic import make_scenes
from ivt2.data.synthetic_media import GROUP_SIZE, encode_mp4, encode_scene
from ivt2.data.synthetic_render import RGB, SAMPLE_RATE_HZ, TONE_HZ, first_place, render, second_place, waveform

SCENES = make_scenes("test", 12, 0)


@pytest.fixture(scope="module")
def clips():
    return [encode_scene(scene, 64) for scene in SCENES]


def frames_of(clip):
    with av.open(io.BytesIO(clip)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_clips_are_h264_and_aac_of_the_right_length(clips):
    for scene, clip in zip(SCENES, clips, strict=True):
        with av.open(io.BytesIO(clip)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", SAMPLE_RATE_HZ, 1)
            assert (video.average_rate, video.frames) == (8, scene.num_frames)
            assert float(video.duration * video.time_base) == scene.duration_s


def test_a_key_frame_comes_often_and_no_frame_waits_for_a_later_one(clips):
    with av.open(io.BytesIO(clips[0])) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.is_keyframe for packet in packets] == [i % GROUP_SIZE == 0 for i in range(len(packets))]
    assert all(packet.pts == packet.dts for packet in packets)
    assert not any(packet.is_discard for packet in packets)


def test_decoded_pixels_are_close_to_the_rendered_ones(clips):
    for scene, clip in zip(SCENES, clips, strict=True):
        difference = frames_of(clip).astype(float) - render(scene, 64)
        assert 10 * np.log10(255**2 / np.square(difference).mean()) > 26


def test_decoded_colours_are_at_the_described_places(clips):
    for scene, clip in zip(SCENES, clips, strict=True):
        words, video = scene.combination, frames_of(clip)
        for i in (0, scene.num_frames - 1):
            for place, shape, colour in (
                (first_place(scene, i), words.shape, words.colour),
                (second_place(scene), words.second_shape, words.second_colour),
            ):
                side = 0.75 if shape == "ring" else 0.0
                seen = video[i, int(place.y * 64), int((place.x - side * place.radius) * 64)].astype(int)
                nearest = min(RGB, key=lambda name: np.abs(seen - np.array(RGB[name])).sum())
                assert nearest == colour
        assert video[:, 0, 0].max() < 70


def test_decoded_sound_is_the_tone_of_the_caption(clips):
    for scene, clip in zip(SCENES, clips, strict=True):
        with av.open(io.BytesIO(clip)) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        expected = waveform(scene) / 32768
        assert len(sound) >= len(expected)
        assert np.corrcoef(sound[: len(expected)], expected)[0, 1] > 0.98
        event = sound[int(scene.start_s * SAMPLE_RATE_HZ) : int(scene.end_s * SAMPLE_RATE_HZ)]
        peak_hz = np.abs(np.fft.rfft(event)).argmax() * SAMPLE_RATE_HZ / len(event)
        assert peak_hz == pytest.approx(TONE_HZ[scene.tone], abs=3)
        assert f"{scene.tone} tone" in scene.captions[0] or f"tone is {scene.tone}" in scene.captions[0]


def test_equal_scenes_give_equal_bytes(clips):
    assert [encode_scene(scene, 64) for scene in SCENES[:4]] == clips[:4]
    assert len(set(clips)) == len(clips)


def test_clips_are_small(clips):
    assert np.mean([len(clip) for clip in clips]) < 24_000


def test_frames_need_not_be_square():
    frames = np.full((4, 32, 48, 3), 128, dtype=np.uint8)
    clip = encode_mp4(frames, np.zeros(8000, dtype=np.int16), fps=8, sample_rate_hz=SAMPLE_RATE_HZ)
    assert frames_of(clip).shape == (4, 32, 48, 3)

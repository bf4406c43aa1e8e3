"""Recordings from the world against a judge: the ffmpeg command, or PyAV's plain sequential decoding."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import wave
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ivt2.batch import Vocabulary
from ivt2.cli import shards, validate
from ivt2.data.audio import decode_audio
from ivt2.data.decode import DecodeError, available_backends, decode_video
from ivt2.data.sampling import middle
from ivt2.datamodules.media_text import MediaTextDataModule
from tests.programs import run_main

FOLDER = Path(os.environ.get("IVT2_MEDIA_DIR", Path(__file__).parents[3] / "shared" / "media"))
CLIPS = sorted((FOLDER / "clips").glob("*.*")) if (FOLDER / "clips").is_dir() else []
ODD = FOLDER / "odd"

pytestmark = pytest.mark.skipif(not CLIPS, reason=f"no recordings in {FOLDER}: set IVT2_MEDIA_DIR")
NAMES = [file.name for file in CLIPS] + ["broken_tail.mp4", "mpeg4_mp3.avi"]


def read(name):
    return next(file for file in (FOLDER / "clips" / name, ODD / name) if file.exists()).read_bytes()


def digest(frame):
    return hashlib.blake2b(frame, digest_size=8).hexdigest()


def ffmpeg_frames(name):
    """Digest of each frame as the command line shows it, converted like PyAV does (bilinear chroma)."""
    file = next(file for file in (FOLDER / "clips" / name, ODD / name) if file.exists())
    with av.open(str(file)) as source:
        stream = source.streams.video[0]
        size = stream.codec_context.height * stream.codec_context.width * 3
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(file), "-map", "0:v:0", "-vsync", "passthrough"]
    command += ["-sws_flags", "bilinear", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        frames = []
        while frame := process.stdout.read(size):
            frames.append(digest(frame))
    assert process.returncode == 0
    return frames


def pyav_frames(name):
    with av.open(BytesIO(read(name))) as source:
        return [digest(frame.to_ndarray(format="rgb24").tobytes()) for frame in source.decode(video=0)]


@functools.cache
def judge(name):
    return ffmpeg_frames(name) if shutil.which("ffmpeg") else pyav_frames(name)


def digests(name, chosen, backend):
    frames = decode_video(read(name), lambda num_frames, fps: chosen, backend=backend).frames
    return [digest(frame.permute(1, 2, 0).numpy().tobytes()) for frame in frames]


def or_skip(name, chosen, backend):
    try:
        return digests(name, chosen, backend)
    except DecodeError as error:
        if backend != "decord" or error.reason != "unsupported_codec":
            raise
        pytest.skip(f"decord refuses it: {error.detail}")


@pytest.mark.slow
@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("name", NAMES)
def test_all_frames(name, backend):
    expected = judge(name)
    assert or_skip(name, range(len(expected)), backend) == expected
    with pytest.raises(IndexError, match=f"of {len(expected)}$"):
        digests(name, [len(expected)], backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("name", NAMES)
def test_random_frames(name, backend):
    expected = judge(name)
    for seed in range(4):
        chosen = np.random.default_rng(seed).integers(0, len(expected), 6).tolist()
        assert or_skip(name, chosen, backend) == [expected[number] for number in chosen]


def shown_in_the_middle_of_parts(name, num_chosen):
    """Frame on the screen in the middle of each chosen part, one part for each frame, by a loop over their times."""
    with av.open(BytesIO(read(name))) as source:
        stream = source.streams.video[0]
        times = sorted(
            float(packet.pts * stream.time_base) for packet in source.demux(stream) if packet.pts is not None
        )
        part_s = (times[-1] - times[0] + 1 / float(stream.average_rate)) / len(times)
    moments = [times[0] + (number + 0.5) * part_s for number in middle(len(times), num_chosen)]
    return [sum(time <= moment for time in times) - 1 for moment in moments]


def no_text(captions):
    return torch.zeros(len(captions), 1, dtype=torch.int64), torch.ones(len(captions), 1, dtype=torch.bool)


@pytest.mark.slow
def test_recordings_are_packed_validated_streamed_and_decoded_frame_exactly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    packing = ["source=jsonl", f"annotations={FOLDER / 'captions.jsonl'}", f"media_root={FOLDER}", "output=clips"]
    assert run_main(shards.main, ["shards", *packing, "max_samples=5", "budget=0"], monkeypatch) == 0
    checking = ["shards=clips", "decode=1.0", "num_frames=2", "hashes=true", "budget=0", "output=validation.json"]
    assert run_main(validate.main, ["validate", *checking], monkeypatch) == 0, capsys.readouterr()
    facts = json.loads((tmp_path / "validation.json").read_text())
    assert facts["decoding"] == {"chosen": 12, "decoded": 12, "failed": 0}
    assert facts["languages"]["shares"] == {"en": 1.0}
    no_text.vocabulary = Vocabulary(size=1, pad_id=0, unk_id=0, cls_id=0, sep_id=0, mask_id=0)
    datamodule = MediaTextDataModule(
        train={"clips": "clips"},
        val={"clips": "clips"},
        tokenizer=no_text,
        num_frames=4,
        train_transforms=[],
        eval_transforms=[],
        train_sampling=middle,
        global_batch_size=1,
        eval_batch_size=1,
        budget=0,
    )
    datamodule.setup("fit")
    files = {f"clips_{file.stem}": file.name for file in CLIPS}
    streamed = []
    for batch in datamodule.train_dataloader():
        name = files[batch["key"][0]]
        streamed.append(name)
        original = decode_video(read(name), lambda length, _: middle(length, 4), by_time=True).frames
        assert torch.equal(batch["video"][0], original), name
        expected = judge(name)
        found = [digest(frame.permute(1, 2, 0).contiguous().numpy().tobytes()) for frame in batch["video"][0]]
        assert found == [expected[number] for number in shown_in_the_middle_of_parts(name, 4)], name
    assert sorted(streamed) == sorted(files.values())


def test_every_clip_is_described_and_has_a_plausible_header():
    records = [json.loads(line) for line in (FOLDER / "captions.jsonl").read_text().splitlines()]
    assert {Path(record["file"]).name for record in records} == {file.name for file in CLIPS}
    for file in CLIPS:
        video = decode_video(file.read_bytes(), lambda num_frames, fps: [0])
        assert 5 <= video.fps <= 30
        assert 1 <= video.duration_s <= 10.1
        assert video.frames.float().std() > 5


def test_garbage_that_was_recorded_as_picture_is_decoded_as_it_is():
    """The last frames of broken_tail.mp4 show garbage in a valid stream: no decoder can know."""
    video = decode_video(read("broken_tail.mp4"), lambda num_frames, fps: range(num_frames))
    assert video.num_frames == 57
    smear = video.frames[:, :, 150:, :200].float().diff(dim=2).abs().mean(dim=(1, 2, 3))  # rows hardly differ
    assert smear[50] < 0.5 * smear[:45].min()


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_cut_recording_is_truncated(part):
    for file in CLIPS:
        data = file.read_bytes()
        with pytest.raises(DecodeError) as caught:
            decode_video(data[: int(len(data) * part)], lambda num_frames, fps: [0])
        assert caught.value.reason == "truncated"


def test_sound_beside_a_video():
    samples = decode_audio(read("mpeg4_mp3.avi"))
    assert abs(len(samples) / 16_000 - 6.56) < 0.2
    assert 0.001 < samples.std() < 0.5
    assert decode_audio(CLIPS[0].read_bytes()) is None


def test_speech_is_read_exactly():
    data = read("speech_16k.wav")
    with wave.open(BytesIO(data)) as source:
        assert (source.getframerate(), source.getsampwidth()) == (16_000, 2)
        samples = np.frombuffer(source.readframes(source.getnframes()), "<i2").reshape(-1, source.getnchannels())
    np.testing.assert_allclose(decode_audio(data).numpy(), samples.mean(axis=1) / 32768, atol=1e-6)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg command is not installed")
def test_sound_equals_ffmpeg():
    file = str(ODD / "mpeg4_mp3.avi")
    with av.open(file) as source:
        channels = source.streams.audio[0].codec_context.channels
    command = ["ffmpeg", "-v", "error", "-i", file, "-map", "0:a:0", "-ar", "16000", "-f", "f32le", "-"]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    expected = np.frombuffer(output, "<f4").reshape(-1, channels).mean(axis=1)
    samples = decode_audio(read("mpeg4_mp3.avi")).numpy()
    num = min(len(samples), len(expected))
    assert abs(len(samples) - len(expected)) <= 32
    np.testing.assert_allclose(samples[:num], expected[:num], atol=2e-3)

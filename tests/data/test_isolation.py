"""Exact: a decoder process gives what decoding here gives; what kills or hangs it costs one sample; nothing is left."""

import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest
import torch

from ivt2.data import isolation
from ivt2.data.audio import decode_audio
from ivt2.data.decode import DecodeError, Limits, Reason, decode_image, decode_video
from ivt2.data.isolation import DecoderProcess
from ivt2.errors import InputError
from tests.data.clips import encode, encode_audio, image_bytes, picture
from tests.datamodules.clip_sets import bad_samples, datamodule, write_clips

HARMFUL = """
import ctypes, os, signal, time
from ivt2.data import isolation
real = isolation.read_video
def read_video(data, choose, **options):
    for word, act in (
        (b"ABORT", os.abort),
        (b"SEGFAULT", lambda: ctypes.string_at(0)),
        (b"LOOP", lambda: time.sleep(60)),
        (b"BOMB", lambda: bytearray(1 << 40)),
    ):
        if data.startswith(word):
            act()
    if data.startswith(b"POISON"):  # the harm shows at the next sample only
        isolation.read_video = lambda *_, **__: os.abort()
        return real(data[6:], choose, **options)
    return real(data, choose, **options)
isolation.read_video = read_video
isolation.main()
"""


@pytest.fixture
def harmful(monkeypatch):
    """Decoder processes in which some bytes do harm, as a codec library would."""
    real = subprocess.Popen

    def popen(arguments, **options):
        assert arguments[1:3] == ["-m", "ivt2.data.isolation"]
        return real([arguments[0], "-c", HARMFUL, *arguments[3:]], stderr=subprocess.DEVNULL, **options)

    monkeypatch.setattr(isolation.subprocess, "Popen", popen)


@pytest.fixture
def process():
    process = DecoderProcess(timeout_s=20)
    yield process
    process.close()


def every(num_frames, fps):
    return range(num_frames)


def reason_of(data, process, read=lambda data, process: decode_video(data, every, process=process)):
    with pytest.raises(DecodeError) as caught:
        read(data, process)
    return caught.value.reason


def soon(holds, limit_s=10.0):
    """Whether a condition comes true within the time."""
    deadline = time.monotonic() + limit_s
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


def state():
    gc.collect()
    return len(psutil.Process().children(recursive=True)), psutil.Process().num_fds()


def test_everything_is_as_without_a_process(process):
    for options in ({"audio_codec": "aac"}, {"rotation": 90, "width": 96}, {"height": 360, "width": 640}):
        data = encode(**options)
        for chosen in ([7, 2, 2, 15], range(16)):
            there = decode_video(data, lambda *_, chosen=chosen: chosen, process=process, start_s=0.0)
            here = decode_video(data, lambda *_, chosen=chosen: chosen)
            assert torch.equal(there.frames, here.frames)
            assert (there.num_frames, there.fps, there.duration_s) == (here.num_frames, here.fps, here.duration_s)
    png = image_bytes(picture(3, 40, 50))
    assert torch.equal(decode_image(png, process=process), decode_image(png))
    for data in (encode_audio("aac", "adts"), encode(audio_codec="aac")):
        assert torch.equal(decode_audio(data, process=process), decode_audio(data))
    assert decode_audio(encode(), process=process) is None
    for reason, members in bad_samples():
        if reason in get_args(Reason):
            assert reason_of(members["mp4"], process) == reason
    assert reason_of(encode(), process, lambda data, process: decode_image(data, process=process)) == "not_image"
    assert reason_of(b"x", process, lambda data, process: decode_audio(data, process=process)) == "not_audio"
    small = Limits(max_frames=3)
    limited = reason_of(encode(), process, lambda data, p: decode_video(data, every, process=p, limits=small))
    assert limited == "too_many_frames"


def test_frames_are_ours_to_keep(process):
    first = decode_video(encode(num_frames=4), every, process=process).frames
    kept = first.clone()
    decode_video(encode(num_frames=9, width=96), every, process=process)
    assert torch.equal(first, kept)


def test_messages_arrive_whole_however_they_are_cut():
    here, there = socket.socketpair()
    channel = isolation._Channel(here, isolation._shared_memory())
    sender = isolation._Channel(there, os.dup(channel.memory))
    sender.send({"numbers": list(range(20_000))})  # more than is received at a time
    assert channel.receive() == {"numbers": list(range(20_000))}
    there.sendall(b"\x09\x00\x00\x00{")
    sender.close()
    with pytest.raises(EOFError):
        channel.receive()
    channel.close()


def test_pixels_are_decoded_to_where_both_processes_see_them_and_copied_once(monkeypatch):
    here, there = socket.socketpair()
    memory = isolation._shared_memory()
    channel = isolation._Channel(there, memory)
    data = encode(num_frames=4)
    channel.array([len(data)], isolation._BYTE)[:] = np.frombuffer(data, np.uint8)
    options = {"backend": "auto", "start_s": None, "end_s": None, "by_time": False}
    request = {"kind": "video", "bytes": len(data), "limits": vars(Limits()), "options": options}
    read_video, places = isolation.read_video, []

    def watched(*arguments, **named):
        video = read_video(*arguments, **named)
        places.append(video.pixels.ctypes.data)
        return video

    monkeypatch.setattr(isolation, "read_video", watched)
    monkeypatch.setattr(isolation, "_Asking", lambda channel: every)
    answer = isolation._answer(request, channel)
    block = channel.array(answer["shape"], isolation._BYTE)
    assert places == [block.ctypes.data]
    assert torch.equal(torch.from_numpy(block.copy()).permute(0, 3, 1, 2), decode_video(data, every).frames)
    here.close()
    channel.close()


def test_one_process_serves_many_samples_and_a_mistake_of_the_caller_ends_it(process):
    before = state()
    data = encode(num_frames=4)
    decode_video(data, every, process=process)
    pid = process._running.process.pid
    decode_video(data, every, process=process)
    assert process._running.process.pid == pid
    with pytest.raises(IndexError, match="of 4"):
        decode_video(data, lambda *_: [4], process=process)
    assert process._running is None
    decode_video(data, every, process=process)
    assert process._running.process.pid != pid
    process.close()
    process.close()
    assert state() == before


@pytest.mark.usefixtures("harmful")
def test_harm_costs_the_sample_alone():
    before, process, good = state(), DecoderProcess(timeout_s=1.5), encode(num_frames=4)
    expected = decode_video(good, every).frames
    for data, reason in (
        (b"ABORT", "decoder_crashed"),
        (b"SEGFAULT", "decoder_crashed"),
        (b"LOOP", "decoder_timeout"),
        (b"BOMB", "decoder_crashed"),
    ):
        assert torch.equal(decode_video(good, every, process=process).frames, expected)
        began = time.monotonic()
        assert reason_of(data, process) == reason
        assert time.monotonic() - began < 2 * 1.5 + 3  # and up to two starts of an interpreter
    drawn = []
    decode_video(b"POISON" + good, every, process=process)
    video = decode_video(good, lambda n, _: drawn.append(n) or range(n), process=process)
    assert torch.equal(video.frames, expected)
    assert drawn == [4]
    process.close()
    assert state() == before


def test_an_answer_that_cannot_be_is_a_crash(process, monkeypatch):
    decode_video(encode(num_frames=4), every, process=process)
    for answer in (
        {"shape": [1 << 40, 1 << 40], "dtype": "uint8"},
        {"shape": [-1], "dtype": "uint8"},
        {"shape": [1], "dtype": "object"},
        {"reason": "../../x", "detail": ""},
        {},
    ):
        monkeypatch.setattr(DecoderProcess, "_receive", lambda *_, answer=answer: answer)
        assert reason_of(encode(num_frames=4), process) == "decoder_crashed"
        assert process._running is None


def test_memory_is_limited_and_signals_to_the_run_do_not_end_it(process):
    decode_video(encode(num_frames=4), every, process=process)
    pid = process._running.process.pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert next(line for line in limits.splitlines() if "address space" in line).split()[3:5] == [str(4 << 30)] * 2
    assert os.getpgid(pid) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(pid, number)
    decode_video(encode(num_frames=4), every, process=process)
    assert process._running.process.pid == pid


def test_a_fork_gets_a_process_of_its_own_and_leaves_ours(process):
    data = encode(num_frames=4)
    decode_video(data, every, process=process)
    pid = process._running.process.pid
    child = os.fork()
    if child == 0:
        decode_video(data, every, process=process)
        other = process._running.process.pid
        process.close()
        os._exit(0 if other != pid else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    decode_video(data, every, process=process)
    assert process._running.process.pid == pid
    assert pickle.loads(pickle.dumps(process))._running is None


def test_mistakes():
    for options in ({"timeout_s": 0.0}, {"memory_bytes": 1 << 20}):
        with pytest.raises(InputError, match="give a positive time"):
            DecoderProcess(**options)


def test_a_process_that_does_not_start_is_told(monkeypatch):
    before = state()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match=r"does not start .*status 1.*isolate=false"):
        decode_video(encode(num_frames=4), every, process=DecoderProcess())
    assert state() == before


PROGRAM = """
from ivt2.data.isolation import DecoderProcess
process = DecoderProcess()
process._started()
print(process._running.process.pid, flush=True)
input()
"""


@pytest.mark.parametrize("end", [None, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_user(end):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], **pipes, text=True, cwd=Path(__file__).parents[2]) as user:
        decoder = psutil.Process(int(user.stdout.readline()))
        if end is None:
            user.stdin.write("\n")
        else:
            user.send_signal(end)
    assert soon(lambda: not decoder.is_running() or decoder.status() == psutil.STATUS_ZOMBIE)  # its reaper is not ours


@pytest.mark.usefixtures("harmful")
@pytest.mark.dist
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_loaders_leave_nothing_behind_and_count_alike(tmp_path):
    bad = {3: {"mp4": b"ABORT", "txt": "x"}, 7: {"mp4": b"SEGFAULT", "txt": "x"}, 8: {"mp4": b"", "txt": "x"}}
    folder = write_clips(tmp_path, num=12, bad=bad)
    accounts = []
    for num_workers in (0, 1, 3):
        module = datamodule({"web": folder}, isolate=True, num_workers=num_workers)
        module.setup("fit")
        before = state()
        keys = [batch["key"] for batch in module.train_dataloader()]
        module._shards[folder].close()
        assert soon(lambda before=before: state() == before)  # a queue to a worker is closed by a thread of its own
        accounts.append((module.ledger.state_dict(), keys))
        assert module.ledger.by_reason() == {"decoder_crashed": 2, "not_video": 1}
        if num_workers == 1:  # given up in the middle
            iterator = iter(module.train_dataloader())
            next(iterator)
            del iterator
            module._shards[folder].close()
            assert soon(lambda before=before: state() == before)
    assert accounts[0] == accounts[1] == accounts[2]

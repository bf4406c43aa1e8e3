"""Decoding in a process of its own: an abort, endless loop or memory bomb in a codec library costs one sample.

The process is a fresh interpreter that has loaded numpy and the codec libraries and nothing else. It is not forked:
that is safe whatever threads its user runs, and a limit on its address space keeps its meaning, which the hundreds of
gigabytes that a GPU driver maps would take away. It serves sample after sample. Bytes and pixels pass through a shared
block of memory, everything else as json through a socket: nothing that a hostile file makes of the decoder process is
ever unpickled here.
"""

import json
import math
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ivt2.data.containers import DecodeError, Limits, Reason
from ivt2.data.decode_arrays import Backend, Choose, VideoArrays, check_numbers, read_audio, read_image, read_video
from ivt2.errors import InputError

_LENGTH = struct.Struct("<I")
_PART = 1 << 16  # bytes
_START_S = 120.0  # until an interpreter on a busy machine has loaded its libraries
_ORPHAN_S = 5.0  # by which the decoder process outlives a time limit that nobody enforces any more
_OUT_OF_MEMORY = 3  # exit status
_BYTE = np.dtype(np.uint8)
_DTYPES: dict[str, np.dtype[Any]] = {"uint8": _BYTE, "float32": np.dtype(np.float32)}


class _Channel:
    """Messages, and one block of memory, between two processes."""

    def __init__(self, link: socket.socket, memory: int) -> None:
        self.link = link
        self.memory = memory
        self._block = mmap.mmap(memory, mmap.PAGESIZE)

    def send(self, message: Mapping[str, Any]) -> None:
        text = json.dumps(message).encode()
        self.link.sendall(_LENGTH.pack(len(text)) + text)

    def receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            EOFError: the other process has gone.
        """
        text = self.link.recv(_PART)  # mostly all of it, as the processes take turns
        while len(text) < _LENGTH.size or len(text) < _LENGTH.size + _LENGTH.unpack_from(text)[0]:
            part = self.link.recv(_PART)
            if not part:
                raise EOFError
            text += part
        return dict(json.loads(text[_LENGTH.size :]))

    def array(self, shape: Sequence[int], dtype: "np.dtype[Any]") -> NDArray[Any]:
        """Return the block's beginning as an array; it holds until the next call of either process."""
        count = math.prod(shape)
        num_bytes = count * dtype.itemsize
        if num_bytes > len(self._block):
            if num_bytes > os.fstat(self.memory).st_size:
                os.ftruncate(self.memory, num_bytes)
            self._block = mmap.mmap(self.memory, num_bytes)
        return np.frombuffer(self._block, dtype, count).reshape(shape)

    def pixels(self, shape: Sequence[int]) -> NDArray[np.uint8]:
        """Like ``array``, for a decoder to write to."""
        return self.array(shape, _BYTE)

    def put(self, array: NDArray[Any]) -> None:
        """Copy an array to the block's beginning, unless it is what lies there."""
        block = self.array(array.shape, array.dtype)
        if (array.ctypes.data, array.strides) != (block.ctypes.data, block.strides):
            block[...] = array  # numpy minds that they may overlap: turned pixels do

    def holds(self, num_bytes: int) -> bool:
        """Whether the block has been made so large."""
        return num_bytes <= os.fstat(self.memory).st_size

    def close(self) -> None:
        self.link.close()
        os.close(self.memory)


class _DiedError(Exception):
    """The decoder process gave no answer."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail


class _Running(NamedTuple):
    """A decoder process and the way to it."""

    process: "subprocess.Popen[bytes]"
    channel: _Channel
    owner: int
    """The process that started it; a fork of that one must leave it alone."""

    def end(self) -> None:
        self.channel.close()
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()


class DecoderProcess:
    """Decodes in another process, which is started at the first sample and again whenever it dies.

    A file that kills it is tried once more if others went through the same process before, so that what becomes of a
    sample does not depend on its neighbours. To be shared by the readers of one loader; in forked workers each gets a
    process of its own. The process ends with its user, at the latest when the time limit of a sample is over.

    Args:
        timeout_s: seconds that one sample may take.
        memory_bytes: address space of the process, code and libraries included.

    Raises:
        InputError: for limits that leave no room.
    """

    def __init__(self, *, timeout_s: float = 60.0, memory_bytes: int = 4 << 30) -> None:
        if timeout_s <= 0 or memory_bytes < 1 << 29:
            raise InputError(
                f"timeout_s={timeout_s}, memory_bytes={memory_bytes}: give a positive time and at least 512 MiB"
            )
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes
        self._running: _Running | None = None
        self._finalizer: Finalize | None = None

    def read_video(
        self,
        data: bytes,
        choose: Choose,
        *,
        backend: Backend,
        limits: Limits,
        start_s: float | None,
        end_s: float | None,
        by_time: bool,
    ) -> VideoArrays:
        """Like ``decode_arrays.read_video``; ``choose`` runs here.

        Raises:
            DecodeError: also ``decoder_crashed`` and ``decoder_timeout``.
        """
        options = {"backend": backend, "start_s": start_s, "end_s": end_s, "by_time": by_time}
        answer, pixels = self._ask("video", data, limits, options, choose)
        assert pixels is not None
        return VideoArrays(pixels, int(answer["num_frames"]), float(answer["fps"]), float(answer["duration_s"]))

    def read_image(self, data: bytes, limits: Limits) -> NDArray[np.uint8]:
        """Like ``decode_arrays.read_image``.

        Raises:
            DecodeError: also ``decoder_crashed`` and ``decoder_timeout``.
        """
        _, pixels = self._ask("image", data, limits, {})
        assert pixels is not None
        return pixels

    def read_audio(
        self, data: bytes, *, sample_rate_hz: int, limits: Limits, start_s: float | None, end_s: float | None
    ) -> NDArray[np.float32] | None:
        """Like ``decode_arrays.read_audio``.

        Raises:
            DecodeError: also ``decoder_crashed`` and ``decoder_timeout``.
        """
        options = {"sample_rate_hz": sample_rate_hz, "start_s": start_s, "end_s": end_s}
        return self._ask("audio", data, limits, options)[1]

    def close(self) -> None:
        """End the process; it starts again when needed."""
        self._running = None
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": None, "_finalizer": None}

    def _ask(
        self, kind: str, data: bytes, limits: Limits, options: Mapping[str, Any], choose: Choose | None = None
    ) -> tuple[dict[str, Any], NDArray[Any] | None]:
        limits.check_bytes(data)
        request = {"kind": kind, "bytes": len(data), "limits": vars(limits), "options": dict(options)}
        remembered = None if choose is None else _Remembered(choose)
        running, fresh = self._started()
        try:
            answer, array = self._converse(running, request, data, remembered)
        except _DiedError as death:
            if fresh or death.reason == "decoder_timeout":
                raise DecodeError(death.reason, death.detail) from death
            try:  # an earlier sample may have done the harm
                answer, array = self._converse(self._started()[0], request, data, remembered)
            except _DiedError as again:
                raise DecodeError(again.reason, again.detail) from again
        if "reason" in answer:
            raise DecodeError(answer["reason"], str(answer["detail"]))
        return answer, array

    def _converse(
        self, running: _Running, request: Mapping[str, Any], data: bytes, choose: "_Remembered | None"
    ) -> tuple[dict[str, Any], NDArray[Any] | None]:
        """Send a request and take the answer; whatever interrupts this ends the decoder process."""
        channel, deadline = running.channel, time.monotonic() + self.timeout_s
        with ExitStack() as stack:
            stack.callback(self.close)
            with _telling_death(running.process, self.timeout_s):
                channel.array([len(data)], _BYTE)[:] = np.frombuffer(data, _BYTE)
                channel.link.settimeout(self.timeout_s)
                channel.send(request)
                answer = self._receive(channel, deadline)
                asked = (int(answer["asked"]), float(answer["fps"])) if "asked" in answer else None
            if asked is not None and choose is not None:
                numbers = choose(*asked)
                with _telling_death(running.process, self.timeout_s):
                    channel.send({"numbers": numbers})
                    answer = self._receive(channel, deadline)
            with _telling_death(running.process, self.timeout_s):
                array = _array_of(answer, channel)
            stack.pop_all()
        return answer, array

    def _receive(self, channel: _Channel, deadline: float) -> dict[str, Any]:
        channel.link.settimeout(max(deadline - time.monotonic(), 0.001))
        return channel.receive()

    def _started(self) -> tuple[_Running, bool]:
        """The process, and whether it has not served yet."""
        if self._running is not None and self._running.owner == os.getpid():
            return self._running, False
        if self._running is not None:  # of the process that this one was forked from
            self._running.end()
        self._running = _start(self.timeout_s, self.memory_bytes)
        # unlike __del__ and atexit, this also runs when a forked worker of a loader ends
        self._finalizer = Finalize(self, self._running.end, exitpriority=0)
        return self._running, True


class _Remembered:
    """Chooses once: a second attempt must not draw anew."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._numbers: list[int] | None = None

    def __call__(self, num_frames: int, fps: float) -> list[int]:
        if self._numbers is None:
            self._numbers = check_numbers(self._choose(num_frames, fps), num_frames)
        return self._numbers


def _array_of(answer: Mapping[str, Any], channel: _Channel) -> NDArray[Any] | None:
    """A copy of the array that an answer announces.

    Raises:
        ValueError: the answer cannot come from a decoder in its right mind.
    """
    if "reason" in answer:
        if answer["reason"] not in get_args(Reason):
            raise ValueError(answer["reason"])
        return None
    if answer["shape"] is None:
        return None
    shape, dtype = [int(size) for size in answer["shape"]], _DTYPES[answer["dtype"]]
    if min(shape) < 0 or not channel.holds(math.prod(shape) * dtype.itemsize):
        raise ValueError(f"an array of {shape}")
    return channel.array(shape, dtype).copy()


@contextmanager
def _telling_death(process: "subprocess.Popen[bytes]", timeout_s: float) -> Iterator[None]:
    """Turn whatever happens when the other process dies, hangs or talks nonsense into ``_DiedError``."""
    try:
        yield
    except TimeoutError as error:
        raise _DiedError("decoder_timeout", f"no answer within {timeout_s:g} s") from error
    except (OSError, EOFError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise _DiedError("decoder_crashed", _how_it_ended(process)) from error


def _how_it_ended(process: "subprocess.Popen[bytes]") -> str:
    try:
        status = process.wait(0.2)
    except subprocess.TimeoutExpired:
        return "the decoder process gave a senseless answer"
    if status == _OUT_OF_MEMORY:
        return "out of memory"
    return f"the decoder process ended with {signal.Signals(-status).name if status < 0 else f'status {status}'}"


def _start(timeout_s: float, memory_bytes: int) -> _Running:
    """Start a decoder process and wait until it is ready.

    Raises:
        InputError: it does not come up.
    """
    here, there = socket.socketpair()
    channel = _Channel(here, _shared_memory())
    settings = [there.fileno(), channel.memory, timeout_s + _ORPHAN_S, memory_bytes]
    # modules are found where this interpreter finds them; one thread, as every loader worker has a decoder process
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with there:
        process = subprocess.Popen(  # noqa: S603  # this interpreter with numbers of ours
            [sys.executable, "-m", "ivt2.data.isolation", *map(str, settings)],
            pass_fds=(there.fileno(), channel.memory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # or Ctrl-C and SIGTERM to the whole group would end it in the middle of a sample
        )
    running = _Running(process, channel, os.getpid())
    with ExitStack() as stack:
        stack.callback(running.end)
        here.settimeout(_START_S)
        try:
            channel.receive()
        except (OSError, EOFError) as error:
            raise InputError(
                f"the decoder process does not start ({_how_it_ended(process)}): see its message above, or set "
                "isolate=false"
            ) from error
        stack.pop_all()
    return running


def _shared_memory() -> int:
    """Descriptor of one page of memory without a name, which can grow but not shrink."""
    if sys.platform == "linux":
        import fcntl

        memory = os.memfd_create("ivt2-decoder", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # shrinking it would kill whoever reads
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, mmap.PAGESIZE)
    return memory


def _serve(channel: _Channel, alarm_s: float) -> None:
    """Answer requests until the other side has gone."""
    channel.send({"ready": True})
    while True:
        try:
            request = channel.receive()
            signal.setitimer(signal.ITIMER_REAL, alarm_s)  # its default action ends even a loop within a library
            channel.send(_answer(request, channel))
        except (EOFError, ConnectionError):
            return
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(request: Mapping[str, Any], channel: _Channel) -> dict[str, Any]:
    data = channel.array([request["bytes"]], _BYTE).tobytes()
    limits, options = Limits(**request["limits"]), request["options"]
    facts: dict[str, Any] = {}
    array: NDArray[Any] | None
    try:
        if request["kind"] == "video":
            array, *rest = read_video(data, _Asking(channel), limits=limits, allocate=channel.pixels, **options)
            facts = dict(zip(VideoArrays._fields[1:], rest, strict=True))
        elif request["kind"] == "image":
            array = read_image(data, limits)
        else:
            array = read_audio(data, limits=limits, **options)
    except DecodeError as error:
        return {"reason": error.reason, "detail": error.detail}
    if array is None:
        return {"shape": None}
    channel.put(array)
    return {"shape": array.shape, "dtype": array.dtype.name, **facts}


class _Asking:
    """Lets the other process choose the frames."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def __call__(self, num_frames: int, fps: float) -> list[int]:
        self._channel.send({"asked": num_frames, "fps": fps})
        return list(self._channel.receive()["numbers"])


def main() -> None:
    """Be a decoder process; the arguments are two descriptors and two limits."""
    link, memory, alarm_s, memory_bytes = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the run decides what they mean; this process ends with the run
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import av  # noqa: F401  # loaded before the first sample's clock runs

    try:
        _serve(_Channel(socket.socket(fileno=int(link)), int(memory)), float(alarm_s))
    except MemoryError:
        sys.exit(_OUT_OF_MEMORY)


if __name__ == "__main__":
    main()

"""Shards on object storage: fetched whole into a bounded cache of this machine, checked, then read like local ones.

Only the file systems named here are opened, through fsspec: no shell, no local path in disguise, no chained address.
"""

import asyncio
import fcntl
import hashlib
import importlib.util
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ivt2.data.files import is_at, try_lock, write_all
from ivt2.data.ledger import SampleError
from ivt2.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, parse_manifest
from ivt2.data.tar_index import TarIndex, scan
from ivt2.errors import InputError

_PROTOCOLS = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
}
"""Allowed protocols and the package that each needs beside fsspec."""
_IN_MEMORY = "memory"
_FOREIGN_ERRORS = (
    *(("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError")),
    ("gcsfs.retry", "HttpError"),
)
"""What libraries raise when a transfer fails, where it is not an OSError."""
_CHUNK = 1 << 20
_LOCK_POLL_S = 0.02

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


def is_address(folder: str | Path) -> bool:
    """Whether a folder is given as an address rather than as a path."""
    return isinstance(folder, str) and ("://" in folder or folder.startswith("pipe:"))


class ShardCache:
    """Shards fetched from elsewhere, shared by all processes of a machine; the least recently opened go first.

    A file is named by its SHA-256 and appears whole or not at all. Whoever reads it holds a shared lock on it and
    whoever fetches it an exclusive one; the system frees both when a process dies. What is locked is never removed, so
    that the bound is exceeded, with a warning, when more than it is in use at a time.

    Args:
        folder: on a local disk; made when absent. None takes ``ivt2/shards`` in the user's cache.
        max_bytes: of all files in it.
    """

    def __init__(self, folder: str | Path | None = None, *, max_bytes: int = 100 << 30) -> None:
        if max_bytes < 1:
            raise InputError(f"max_bytes={max_bytes}: must be at least 1")
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = home / "ivt2" / "shards" if folder is None else Path(folder)
        self.max_bytes = max_bytes

    def open(self, sha256: str, num_bytes: int, fetch: Callable[[int], None]) -> int:
        """Open a file for reading; it cannot be removed until it is closed.

        Args:
            sha256: of its content.
            num_bytes: its size.
            fetch: writes the content into an open file, when it is not there yet.

        Returns:
            A file descriptor.

        Raises:
            OSError: when the cache cannot be written, besides whatever ``fetch`` raises.
        """
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise SampleError("shard_unreadable")
        path = self.folder / sha256
        while True:
            file = _lock_existing(path)
            if file is not None:
                os.utime(file)
                return file
            with self._alone(path) as partial:
                if partial is not None:
                    self._make_room(num_bytes, partial)
                    fetch(partial)
                    os.fsync(partial)
                    path.with_suffix(".partial").replace(path)

    @contextmanager
    def _alone(self, path: Path) -> Iterator[int | None]:
        """Hold the unfinished file alone; None when another process has finished it in the meantime."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock_while(file, lambda: is_at(file, partial))
            if path.exists() and is_at(file, partial):  # finished just before this file was made anew
                partial.unlink()
            yield file if is_at(file, partial) else None
        finally:
            os.close(file)

    def holds(self, sha256: str) -> bool:
        """Whether a file is there at this moment."""
        return (self.folder / sha256).exists()

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Time, size and path of each file of the cache; others may lie in its folder."""
        for path in self.folder.iterdir():
            if re.fullmatch(r"[0-9a-f]{64}(\.partial)?", path.name):
                with suppress(FileNotFoundError):
                    facts = path.stat()
                    yield facts.st_mtime_ns, facts.st_size, path

    def _make_room(self, num_bytes: int, partial: int) -> None:
        """Remove what was not opened for longest, and claim the space of a new file."""
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.ftruncate(partial, 0)
            files = sorted(self._files())
            excess = sum(size for _, size, _ in files) + num_bytes - self.max_bytes
            for _, size, path in files:
                if excess > 0 and _remove_unused(path):
                    excess -= size
            if excess > 0:
                _log.warning("%s: shards in use exceed max_bytes=%d by %d", self.folder, self.max_bytes, excess)
            os.ftruncate(partial, num_bytes)
        finally:
            os.close(lock)


class RemoteFiles:
    """The files of a shard set on object storage.

    Args:
        address: such as ``s3://bucket/set`` or ``https://host/set``.
        cache: where shards are kept.
        attempts: how often a transfer is tried.
        backoff_s: wait before the second attempt, in seconds; it doubles with each.
        timeout_s: without any byte, in seconds, after which an attempt is given up (where the library can tell).
        min_rate: bytes a second; an attempt that is slower on the whole, after ``timeout_s``, is given up.

    Raises:
        InputError: when the protocol is not allowed or a package for it is missing.
    """

    def __init__(
        self,
        address: str,
        cache: ShardCache,
        *,
        attempts: int = 5,
        backoff_s: float = 1.0,
        timeout_s: float = 60.0,
        min_rate: float = 1e5,
    ) -> None:
        self.address = address.rstrip("/")
        self.cache = cache
        self.attempts = attempts
        self.backoff_s = backoff_s
        self.timeout_s = timeout_s
        self.min_rate = min_rate
        self._protocol = _protocol(address)
        self._errors = _transfer_errors()
        self._systems: dict[int, Any] = {}
        self._wanted: tuple[int, queue.SimpleQueue[ShardInfo]] | None = None

    def manifest(self) -> Manifest:
        """Fetch the manifest.

        Raises:
            InputError: when there is none.
        """
        address = f"{self.address}/{MANIFEST_NAME}"
        try:
            content = self._retried(lambda: b"".join(self._chunks(MANIFEST_NAME, None)), MANIFEST_NAME)
        except SampleError as error:
            raise InputError(f"{address}: cannot be fetched; correct the address or see the warnings above") from error
        return parse_manifest(content, address)

    def open(self, shard: ShardInfo) -> int:
        """Open a shard, fetched first where it is not in the cache.

        Raises:
            SampleError: ``shard_unreachable`` after the last attempt, ``shard_changed`` when what was fetched is not
                what the manifest says.
            OSError: when the cache cannot be written.
        """
        fetch = lambda file: self._retried(lambda: self._fetch(shard, file), shard.name)  # noqa: E731
        return self.cache.open(shard.sha256, shard.bytes, fetch)

    def index(self, shard: ShardInfo) -> bytes:
        """Fetch the index file of a shard; errors as for ``open``."""
        return self._retried(lambda: b"".join(self._chunks(shard.index_name, None)), shard.index_name)

    def scan(self, shard: ShardInfo) -> TarIndex:
        """Go through the headers of a shard that has no index; errors as for ``open``."""
        file = self.open(shard)
        try:
            return scan(self.cache.folder / shard.sha256)
        finally:
            os.close(file)

    def prefetch(self, shards: Iterable[ShardInfo]) -> None:
        """Fetch shards in a thread of this process, one after the other; failures are left to whoever opens them."""
        if self._wanted is None or self._wanted[0] != os.getpid():
            wanted: queue.SimpleQueue[ShardInfo] = queue.SimpleQueue()
            self._wanted = os.getpid(), wanted
            threading.Thread(target=self._fetch_wanted, args=(wanted,), daemon=True, name="prefetch").start()
        for shard in shards:
            if not self.cache.holds(shard.sha256):
                self._wanted[1].put(shard)

    def _fetch_wanted(self, wanted: "queue.SimpleQueue[ShardInfo]") -> None:
        given_up: set[str] = set()
        while True:
            shard = wanted.get()
            if self.cache.holds(shard.sha256) or shard.name in given_up:
                continue
            try:
                os.close(self.open(shard))
            except (OSError, SampleError):
                given_up.add(shard.name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_systems": {}, "_wanted": None}

    def _fetch(self, shard: ShardInfo, file: int) -> None:
        state, size = hashlib.sha256(), 0
        os.lseek(file, 0, os.SEEK_SET)
        for chunk in self._chunks(shard.name, shard.bytes):
            size += len(chunk)
            if size > shard.bytes:
                break
            state.update(chunk)
            write_all(file, [chunk])
        if size != shard.bytes or state.hexdigest() != shard.sha256:
            raise _ChangedError(f"{size} bytes fetched of {shard.bytes}, or another SHA-256")

    def _chunks(self, name: str, num_bytes: int | None) -> Iterator[bytes]:
        system, path = self._file_system(), f"{self.address}/{name}"
        # 0 reads the answer as one stream; otherwise each block would be a request of its own
        streamed = {"block_size": 0} if self._protocol in {"http", "https", "hf"} else {}
        known = {"size": num_bytes or 1} if self._protocol in {"http", "https"} else {}
        begin, size = time.monotonic(), 0
        with system.open(path, "rb", **streamed, **known) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
                size += len(chunk)
                if time.monotonic() - begin > self.timeout_s + size / self.min_rate:
                    raise TimeoutError(f"slower than {self.min_rate:g} bytes a second")

    def _file_system(self) -> Any:
        """One for each process: those that run an event loop in a thread do not survive a fork."""
        import fsspec

        if os.getpid() not in self._systems:
            options: dict[str, Any] = {}
            if self._protocol in {"http", "https"}:
                import aiohttp

                timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout_s, sock_read=self.timeout_s)
                options = {"client_kwargs": {"timeout": timeout}}
            # the parent's stays where it is: to end it here would close connections that the parent uses
            self._systems[os.getpid()] = fsspec.filesystem(self._protocol, skip_instance_cache=True, **options)
        return self._systems[os.getpid()]

    def _retried(self, action: Callable[[], _Result], name: str) -> _Result:
        reason = "shard_unreachable"
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.backoff_s * 2 ** (attempt - 1))
            try:
                return action()
            except _ChangedError as error:
                reason, problem = "shard_changed", str(error)
            except self._errors as error:
                reason, problem = "shard_unreachable", f"{type(error).__name__} {error}"
                if isinstance(error, FileNotFoundError | PermissionError):
                    break
        _log.warning("%s/%s: given up after %d attempts (%s)", self.address, name, attempt + 1, problem)
        raise SampleError(reason)


class _ChangedError(Exception):
    """What was fetched is not what the manifest says."""


def _protocol(address: str) -> str:
    protocol = address.partition(":")[0]
    if "::" in address or protocol not in {*_PROTOCOLS, _IN_MEMORY}:
        raise InputError(f"{address}: shards are read from a folder, or from {', '.join(sorted(_PROTOCOLS))}")
    package = _PROTOCOLS.get(protocol, "fsspec")
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{address}: needs {package}; install it with `pip install {package}`")
    return protocol


def _transfer_errors() -> tuple[type[BaseException], ...]:
    """OSError, and the errors of those libraries that are installed."""
    found: list[type[BaseException]] = [OSError, TimeoutError, asyncio.TimeoutError]
    for module, name in _FOREIGN_ERRORS:
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


def _lock_while(file: int, worth_it: Callable[[], bool]) -> None:
    """Wait for an exclusive lock as long as it is worth it.

    A fetched file keeps its inode when it gets its name: its readers' locks would hold up those who waited for it.
    """
    while worth_it():
        if try_lock(file):
            return
        time.sleep(_LOCK_POLL_S)


def _lock_existing(path: Path) -> int | None:
    """Open a file with a shared lock; None when it is not there or was just removed."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file).st_nlink:
        return file
    os.close(file)
    return None


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a process reads or writes it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        unused = try_lock(file)
        if unused:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)
    return unused

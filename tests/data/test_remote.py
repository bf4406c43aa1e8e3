"""Exact: what is fetched is what was written; faults of a server cost the samples of a shard, never the run."""

import os
import pickle
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from ivt2.data.ledger import SampleError
from ivt2.data.manifest import read_manifest
from ivt2.data.remote import RemoteFiles, ShardCache, is_address
from ivt2.data.shards import ShardSet, ShardWriter
from ivt2.errors import InputError


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "set", max_samples=2, max_bytes=1 << 20) as writer:
        for number in range(6):
            writer.write(f"clip{number}", {"mp4": bytes([number]) * 20_000, "json": {"caption": str(number)}})
    return tmp_path / "set"


class Handler(BaseHTTPRequestHandler):
    """Serves a folder; the server's faults say, for each file, what goes wrong with its next requests."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.server.requests.append(name)
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else None
        content = (self.server.folder / name).read_bytes()
        if fault in {404, 500}:
            self.send_error(fault)
            return
        if fault == "reset":
            self.connection.close()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "changed":
            content = content[:-1] + b"x"
        if fault == "truncated":
            content = content[:1000]
        if fault in {"slow", "stalled"}:
            self.crawl(content, pause=0.02 if fault == "slow" else 30.0)
            return
        self.wfile.write(content)

    def crawl(self, content, pause):
        for place in range(len(content)):
            if self.server.stopping.wait(pause):
                return
            try:
                self.wfile.write(content[place : place + 1])
            except OSError:
                return

    def log_message(self, *_):
        pass


@pytest.fixture
def server(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.folder, server.faults, server.requests, server.stopping = folder, {}, [], threading.Event()
    server.address = f"http://127.0.0.1:{server.server_port}/set"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    thread.join()
    server.server_close()


def remote_set(server, tmp_path, **options):
    limits = {"attempts": 3, "backoff_s": 0.01, "timeout_s": 0.3, **options}
    files = RemoteFiles(server.address, ShardCache(tmp_path / "cache"), **limits)
    manifest = files.manifest()
    return ShardSet(files, manifest.shards, manifest.hash)


def outcome(shards, index):
    try:
        return shards.read(index).key
    except SampleError as error:
        return error.reason


def samples(shards):
    return [shards.read(index) for index in range(len(shards))]


def test_a_set_in_memory_is_read_like_a_local_one(folder, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/set", recursive=True)
    shards = ShardSet.open("memory://bucket/set", cache=ShardCache(tmp_path / "cache"))
    local = ShardSet.open(folder)
    assert shards.manifest_hash == local.manifest_hash
    assert samples(shards) == samples(local)
    memory.rm("/bucket", recursive=True)
    assert samples(shards) == samples(local)
    with pytest.raises(InputError, match="cannot be fetched"):
        ShardSet.open("memory://bucket/set", cache=ShardCache(tmp_path / "cache"))


def test_each_shard_is_fetched_once_and_only_when_needed(server, folder, tmp_path):
    shards = remote_set(server, tmp_path)
    assert shards.key(3) == "clip3"
    assert server.requests == ["manifest.json", "shard-000001.index"]
    assert samples(shards) == samples(ShardSet.open(folder))
    assert samples(remote_set(server, tmp_path)) == samples(shards)
    assert sorted(name for name in server.requests if name.endswith("tar")) == list(shards.names)


def test_sets_without_index_are_scanned_after_fetching(server, folder, tmp_path):
    for path in folder.glob("*.index"):
        path.write_bytes(b"damaged")
    assert samples(remote_set(server, tmp_path)) == samples(ShardSet.open(folder))


FAULTS = [404, 500, "reset", "truncated", "changed", "slow", "stalled"]


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_a_fault_that_passes_costs_nothing(server, folder, tmp_path, fault):
    server.faults = {"shard-000001.tar": [fault], "shard-000000.index": [fault] if isinstance(fault, int) else []}
    shards = remote_set(server, tmp_path)
    assert samples(shards) == samples(ShardSet.open(folder))
    assert server.requests.count("shard-000001.tar") == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_costs_the_samples_of_the_shard(server, tmp_path, fault):
    server.faults = {"shard-000001.tar": [fault] * 99}
    shards = remote_set(server, tmp_path, attempts=2)
    begin = time.monotonic()
    reason = "shard_changed" if fault == "changed" else "shard_unreachable"
    assert [outcome(shards, index) for index in range(6)] == ["clip0", "clip1", reason, reason, "clip4", "clip5"]
    assert time.monotonic() - begin < 5.0
    assert shards.key(2) == "clip2"
    tries = server.requests.count("shard-000001.tar")
    assert tries == {404: 1, "reset": 4}.get(fault, 2)  # aiohttp itself tries again after a reset


def test_a_set_that_cannot_be_reached_is_one_line(server, tmp_path):
    server.faults = {"manifest.json": [404]}
    with pytest.raises(InputError, match=r"set/manifest\.json: cannot be fetched"):
        remote_set(server, tmp_path)


def test_forked_processes_share_the_cache(server, folder, tmp_path):
    shards = remote_set(server, tmp_path, timeout_s=10.0)
    expected = samples(ShardSet.open(folder))
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os._exit(0 if samples(shards) == expected else 1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 3
    assert sorted(name for name in server.requests if name.endswith("tar")) == list(shards.names)
    assert samples(pickle.loads(pickle.dumps(shards))) == expected


def test_shards_are_fetched_ahead_in_the_background(server, folder, tmp_path):
    server.faults = {"shard-000000.tar": [404] * 9}
    shards = remote_set(server, tmp_path)
    shards.prefetch(np.array([0, 1, 5]))
    deadline = time.monotonic() + 10
    while not shards._files.cache.holds(read_manifest(folder).shards[2].sha256):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "shard-000001.tar" not in server.requests
    assert [outcome(shards, index) for index in (0, 4)] == ["shard_unreachable", "clip4"]
    assert server.requests.count("shard-000002.tar") == 1


def filled(cache, number, size=100):
    return cache.open(f"{number:064x}", size, lambda file: os.write(file, bytes(size)))


def held(cache):
    return sorted(int(path.name, 16) for path in cache.folder.iterdir() if len(path.name) == 64)


def test_the_cache_drops_what_was_not_used_for_longest(tmp_path):
    cache = ShardCache(tmp_path, max_bytes=350)
    for number in (1, 2, 3, 1, 4):
        os.close(filled(cache, number))
        time.sleep(0.01)
    assert held(cache) == [1, 3, 4]


def test_what_is_in_use_stays_and_what_a_dead_process_left_goes(tmp_path, caplog):
    cache = ShardCache(tmp_path, max_bytes=250)
    (tmp_path / f"{9:064x}.partial").write_bytes(bytes(200))
    in_use = [filled(cache, 1), filled(cache, 2)]
    assert held(cache) == [1, 2]
    assert not caplog.text
    os.close(filled(cache, 3))
    assert held(cache) == [1, 2, 3]
    assert "exceed max_bytes=250" in caplog.text
    os.close(in_use[0])
    os.close(filled(cache, 4))
    assert 2 in held(cache)
    assert 1 not in held(cache)
    os.close(in_use[1])


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "mine").write_bytes(bytes(1000))
    (tmp_path / "folder").mkdir()
    os.close(filled(ShardCache(tmp_path, max_bytes=50), 1))
    assert (tmp_path / "mine").exists()


def test_a_fetch_that_fails_leaves_nothing_to_read(tmp_path):
    cache = ShardCache(tmp_path)

    def fail(file):
        os.write(file, b"half")
        raise SampleError("shard_unreachable")

    with pytest.raises(SampleError):
        cache.open("0" * 64, 100, fail)
    os.close(cache.open("0" * 64, 2, lambda file: os.write(file, b"ok")))
    assert (tmp_path / ("0" * 64)).read_bytes() == b"ok"


def test_one_process_waits_for_the_other(tmp_path):
    cache = ShardCache(tmp_path)
    fetched = []

    def slow(file):
        time.sleep(0.1)
        fetched.append(os.write(file, b"ok"))

    threads = [threading.Thread(target=lambda: os.close(cache.open("0" * 64, 2, slow))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [2]


def test_who_waits_for_a_file_goes_on_although_the_first_reader_keeps_it_open(tmp_path):
    """Both locks are on one inode: the reader's would keep the waiter out for as long as the shard is open."""
    cache, name, began = ShardCache(tmp_path), "b" * 64, threading.Event()
    opened = []

    def fetch(file):
        began.set()
        time.sleep(0.2)
        os.write(file, b"x")

    first = threading.Thread(target=lambda: opened.append(cache.open(name, 1, fetch)))
    second = threading.Thread(target=lambda: opened.append(cache.open(name, 1, fetch)), daemon=True)
    first.start()
    began.wait(5)
    second.start()
    first.join(5)
    second.join(5)
    assert not second.is_alive()
    for file in opened:
        os.close(file)


def test_names_in_a_manifest_cannot_leave_the_cache(tmp_path):
    with pytest.raises(SampleError):
        ShardCache(tmp_path).open("../" + "0" * 61, 1, lambda file: None)


@pytest.mark.parametrize(
    "address",
    ["pipe:cat set", "file:///set", "local://set", "simplecache::s3://a/b", "ssh://host/set", "ftp://host/set"],
)
def test_other_protocols_are_refused(address):
    with pytest.raises(InputError, match="shards are read from a folder, or from"):
        ShardSet.open(address)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install s3fs"):
        RemoteFiles("s3://bucket/set", ShardCache(Path("unused")))


def test_paths_are_no_addresses():
    assert not any(map(is_address, ["a/b", "a:b", Path("s3://x")]))
    assert is_address("s3://x")

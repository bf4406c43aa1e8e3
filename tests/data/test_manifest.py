"""Exact: a manifest may come from anywhere, so no field is trusted."""

import json

import pytest

from ivt2.data.manifest import Manifest, ShardInfo, parse_manifest
from ivt2.errors import InputError

GOOD = [
    {"name": f"{number}.tar", "sha256": "0" * 64, "bytes": 9, "samples": 2, "duration_s": 1, "index_sha256": None}
    for number in range(3)
]


def text(**changed):
    """A manifest whose second shard is changed."""
    return json.dumps({"version": 2, "shards": [GOOD[0], GOOD[1] | changed, GOOD[2]]}).encode()


def test_what_is_written_is_read():
    manifest = Manifest(tuple(ShardInfo(**shard) for shard in GOOD))
    assert parse_manifest(text(), "here") == manifest
    assert parse_manifest(manifest.to_json().encode(), "here") == manifest


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"name": 1}, "name and hashes of a shard are text"),
        ({"name": None}, "name and hashes of a shard are text"),
        ({"sha256": 7}, "name and hashes of a shard are text"),
        ({"index_sha256": 7}, "name and hashes of a shard are text"),
        ({"bytes": -1}, "bytes and samples of a shard are whole numbers"),
        ({"bytes": True}, "bytes and samples of a shard are whole numbers"),
        ({"samples": -1}, "bytes and samples of a shard are whole numbers"),
        ({"samples": 1.5}, "bytes and samples of a shard are whole numbers"),
        ({"duration_s": "1"}, "duration_s of a shard is a number"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"name": "../1.tar"}, r"names a shard outside its folder \(\.\./1\.tar\)"),
        ({"name": "a\0.tar"}, "names a shard outside its folder"),
        ({"name": ".."}, "names a shard outside its folder"),
        ({"name": ""}, "names a shard outside its folder"),
        ({"name": "2.tar"}, "names a shard twice"),
    ],
)
def test_what_no_writer_writes_is_refused(changed, expected):
    with pytest.raises(InputError, match=f"here: .*{expected}"):
        parse_manifest(text(**changed), "here")

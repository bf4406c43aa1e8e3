"""Oracle: tarfile writes the same headers."""

import tarfile

import pytest

from ivt2.data.shard_file import tar_header

NAMES = ["a.mp4", "x" * 99 + "y", "x" * 101, "caf\u00e9.json", "clip 1_2.json", "~.txt"]
SIZES = [0, 7, 8, 511, 123_456_789, 8**11 - 1, 8**11]


@pytest.mark.parametrize("name", NAMES)
def test_headers_are_those_of_tarfile(name):
    for size in SIZES:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o444
        assert tar_header(name, size) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")

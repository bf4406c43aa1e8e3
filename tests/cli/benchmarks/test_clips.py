"""Exact: clips have the key frames and the size that were asked for."""

import io
from dataclasses import replace

import av
import numpy as np
import pytest

from ivt2.cli.benchmarks.clips import prepared_footage, raw_footage, rendered


@pytest.mark.parametrize(("footage", "gop"), [(prepared_footage(20), 8), (raw_footage(20), 250)])
def test_clips_look_as_asked_differ_and_are_rendered_once(tmp_path, footage, gop):
    small = replace(footage, width=64, height=48)
    first, second = rendered(tmp_path, small, 2)
    assert first != second
    with av.open(io.BytesIO(first)) as clip:
        frames = list(clip.decode(video=0))
    assert [frame.pts for frame in frames if frame.key_frame] == [frames[at].pts for at in range(0, 20, gop)]
    if gop == 8:  # as ``preparation=sparse`` has it
        types = "".join(av.video.frame.PictureType(frame.pict_type).name for frame in frames)
        assert types == "IBBBPBBPIBBBPBBPIBBP"
    assert frames[0].to_ndarray().shape == (72, 64)
    assert not np.array_equal(frames[0].to_ndarray(), frames[-1].to_ndarray())
    (first_file,) = tmp_path.glob("*_000.mp4")
    first_file.write_bytes(b"kept")
    assert rendered(tmp_path, small, 2) == [b"kept", second]

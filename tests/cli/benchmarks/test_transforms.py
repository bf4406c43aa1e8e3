"""Oracle: the chain of PIL and ours give the same pixels."""

import numpy as np

from ivt2.cli.benchmarks.transforms import _moving, _ours, _reference
from ivt2.ops.pixels import normalize_pixels


def test_both_chains_of_transforms_give_the_same_pixels():
    pixels = _moving(2, 240, 300)
    for seed in range(4):
        ours, reference = (chain(pixels, np.random.default_rng(seed)) for chain in (_ours, _reference))
        assert (normalize_pixels(ours[None])[0] - reference).abs().max() < 1.5 / 255 / 0.224

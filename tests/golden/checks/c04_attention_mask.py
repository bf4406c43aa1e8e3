"""Masks: drawn from attention with the recorded generator states, and numpy's uniform ones.

Every recorded draw is reproduced bit by bit. ``torch.multinomial`` divides the weights by exponential noise, which
``exponential_`` draws from the same generator state. Our own draws are hashes of seeds: these are held to the recorded
frequencies. Numpy shuffles a row of zeros and ones; the same shuffle of
positions gives the noise under which our functions hide the same patches.
"""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ivt2.errors import InputError
from ivt2.ops.masking import attention_masking, random_masking, tube_masking
from ivt2.ops.random import uniform
from tests.golden.case import Case

NUMPY_SEED = 5
LEAST_P = 1e-3
STREAM = 4
"""That of the masks of stage 1."""


def check(case: Case) -> None:
    outputs = list(case.outputs)
    for pattern, compare in COMPARISONS.items():
        for output in list(outputs):
            if match := re.fullmatch(pattern, output):
                compare(case, output, *match.groups())
                outputs.remove(output)
    assert not outputs, f"not compared: {outputs}"
    for row in case.json["cases"]:
        check_counts(case, row)
    for num_patches, ratio, visible, hidden in case.json["counts"]:
        check_table_row(int(num_patches), float(ratio), visible, hidden)
    assert case.json["zero_weight"] == "accepted"
    weights = torch.zeros(1, 8)
    weights[0, 3] = 1
    assert attention_masking(weights, exponential(0, weights), 0.5).sum() == 4


def exponential(seed: int, like: Tensor) -> Tensor:
    torch.manual_seed(seed)
    return torch.empty_like(like).exponential_()


def check_drawn(case: Case, output: str, kind: str, seed: str, ratio: str) -> None:
    recorded = case.outputs[output]
    assert not recorded[:, 0].any()
    assert torch.equal(draw(case, kind, int(seed), float(ratio)), recorded[:, 1:]), output


def draw(case: Case, kind: str, seed: int, ratio: float) -> Tensor:
    attention = case.inputs["attn_per_frame" if kind == "pretrain" else "attn_per_clip"]
    noise = exponential(seed, attention)
    shape = (case.config["B"], -1, case.config["N"]) if kind == "pretrain" else (case.config["B"], -1)
    return attention_masking(attention.view(shape), noise.view(shape), ratio)


def check_counts(case: Case, row: dict) -> None:
    visible = ~draw(case, row["kind"], row["seed"], row["ratio"])
    if row["kind"] == "pretrain":
        per_frame = visible.view(case.config["B"], -1, row["N"]).sum(dim=2)
        assert per_frame.tolist() == row["visible_per_frame"]
        assert set(per_frame.flatten().tolist()) == {row["N_vis"]}
    else:
        assert visible.shape[1] == row["N"]
        assert visible.sum(dim=1).tolist() == row["visible_total"] == [row["N_vis"]] * len(visible)


def check_table_row(num_patches: int, ratio: float, visible: int, hidden: int) -> None:
    weights = torch.ones(1, num_patches)
    if ratio == 1:
        assert visible == 0
        with pytest.raises(InputError, match="hides everything"):
            attention_masking(weights, exponential(0, weights), ratio)
        return
    masked = attention_masking(weights, exponential(0, weights), ratio)
    assert (int((~masked).sum()), int(masked.sum())) == (visible, hidden)


def check_inclusion(case: Case, output: str) -> None:
    """How often each patch is visible: our own draws, from hashes of seeds, are of the recorded distribution.

    A sharper or flatter one, and one in which patches take turns by place, would be found.
    """
    recorded, inclusion = case.outputs[output], case.json["inclusion"]
    num_draws = inclusion["draws"]
    attention = case.inputs["attn_per_frame"][: len(recorded)]
    noise = -torch.log1p(-uniform(torch.arange(num_draws), attention.numel(), STREAM)).view(-1, *attention.shape)

    def p_values(weights: Tensor) -> list[float]:
        masked = attention_masking(weights.expand(num_draws, -1, -1), noise, inclusion["ratio"]).view(noise.shape)
        assert set((~masked).sum(dim=2).flatten().tolist()) == {inclusion["N_vis"]}
        frames = zip((~masked).double().unbind(1), recorded.double(), strict=True)
        return [two_sample_p_value(drawn, frequency) for drawn, frequency in frames]

    assert all(LEAST_P < found < 1 - LEAST_P for found in p_values(attention)), output
    for other in (attention**1.05, attention**0.95, attention.roll(1, dims=1)):
        assert all(found < LEAST_P for found in p_values(other)), "a test that finds nothing"


def two_sample_p_value(drawn: Tensor, frequency: Tensor) -> float:
    """Of the hypothesis that as many draws as ours, of which the frequencies are known, have the same distribution.

    The number of visible patches is fixed, so the frequencies are correlated, and there is one degree of freedom less
    than patches: the squared distance counts by the covariance of the draws.
    """
    difference = drawn.mean(dim=0) - frequency
    covariance = 2 * torch.cov(drawn.T) / len(drawn)
    chi_square = difference @ torch.linalg.pinv(covariance, rtol=1e-6, hermitian=True) @ difference
    half_freedom = torch.tensor((len(frequency) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(half_freedom, chi_square / 2).item()


def check_numpy(case: Case, output: str, kind: str, shape: str, ratio: str) -> None:
    """One row of stage 1 as zeros and ones, or a batch of stage 2."""
    recorded = case.outputs[output].bool()
    frames, rows, columns = (int(size) for size in shape.split("x"))
    rng = np.random.RandomState(NUMPY_SEED)
    num_rows = recorded[..., 0].numel()
    batch = torch.cat([numpy_mask(rng, kind, frames, rows * columns, float(ratio)) for _ in range(num_rows)])
    assert torch.equal(batch.view(recorded.shape), recorded), output
    counts = case.json["np_masks"][f"{kind}_{shape}_{ratio}"]
    assert set(batch.sum(dim=1).tolist()) == {counts["masked"]}
    assert set((~batch).sum(dim=1).tolist()) == {counts["visible"]}


def numpy_mask(rng: np.random.RandomState, kind: str, frames: int, patches: int, ratio: float) -> Tensor:
    length = patches if kind == "tube" else frames * patches
    places = np.arange(length)
    rng.shuffle(places)
    # Shuffled are zeros with ones behind them, so what came from far behind is hidden: the smallest noise.
    noise = 1 - torch.from_numpy(places + 1).unsqueeze(0) / length
    return tube_masking(noise, ratio, frames) if kind == "tube" else random_masking(noise, ratio)


COMPARISONS: dict[str, Callable[..., None]] = {
    r"(pretrain|distill)_mask_seed(\d+)_r([\d.]+)": check_drawn,
    r"inclusion_frequency_.+": check_inclusion,
    r"(?:np|stage2)_(tube|random)_(\d+x\d+x\d+)_([\d.]+)": check_numpy,
}

"""Steps of stage 2 on a device: operations by hand, what the figure is made of, and mistakes."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from ivt2.cli.benchmarks.device_steps import WARM_UPS
from ivt2.cli.benchmarks.pair_flops import pair_flops
from ivt2.cli.benchmarks.stage2_mfu import Stage2MfuSuite
from ivt2.errors import InputError
from ivt2.models.published import bert_large, video_encoder
from ivt2.models.stage2 import Stage2Model
from ivt2.modules.stage2 import Stage2Module
from tests.modules.stage2_case import make_model

CARD = Path(__file__).parents[3] / "experiments" / "stage2_1b"


def suite(**options):
    given = {
        "model": make_model(),
        "optimizer": partial(torch.optim.AdamW, lr=1e-3),
        "batch_sizes": [2, 3],
        "mask_ratio": 0.5,
        "length": 6,
        "bf16": False,
        "compile": False,
        "device": "cpu",
        "peak_flops": 1e9,
        "num_steps": 3,
    }
    return Stage2MfuSuite(**given | options)


def test_figures_are_shares_of_the_peak_rate(tmp_path, monkeypatch):
    sizes, ticks = [], []
    original = Stage2Module.training_step
    monkeypatch.setattr(
        Stage2Module,
        "training_step",
        lambda module, batch, number: (sizes.append(len(batch["video"])), original(module, batch, number))[1],
    )
    measured = suite()
    before = {name: each.clone() for name, each in measured.model.state_dict().items()}
    flops = pair_flops(measured.model, mask_ratio=0.5, length=6, num_hidden=2)
    figures = list(measured.run(tmp_path, lambda: ticks.append(1)))
    assert [figure.what for figure in figures] == ["2 pairs", "3 pairs"]
    assert sizes == [2] * (WARM_UPS + 3) + [3] * (WARM_UPS + 3)
    assert len(ticks) == measured.turns == 6
    for figure in figures:
        assert figure.value.median == pytest.approx(100 * figure.details["pairs/s"] * flops.total / 1e9)
        assert figure.details["of them text %"] == pytest.approx(100 * flops.text / flops.total)
    assert any((each != before[name]).any() for name, each in measured.model.state_dict().items())


def test_operations_of_the_published_recipe_by_hand():
    with torch.device("meta"):
        vision = video_encoder("1b", num_frames=4, separate_image_position=True)
        model = Stage2Model(vision, bert_large(encoder_width=1408))
    found = pair_flops(model, mask_ratio=0.8, length=32, num_hidden=16)
    seen, dim, width, length = 206, 1024, 1408, 32
    linear = 2 * dim**2  # of a token

    def looking(asked, keys, columns):
        """Four captions in a fusion layer: linear maps of what asks and of the others' keys, then attention."""
        own = 4 * columns * 4 * length * dim
        clip = 4 * columns * 4 * seen * dim
        return asked * 12 * linear + keys * 2 * linear + own + clip

    below = 19 * 2 * (length * 12 * linear + 4 * length**2 * dim)
    keys = 5 * 2 * seen * 2 * dim * width
    # In each of the first four all tokens ask; in the last one three start tokens and 16 words do.
    above = 4 * looking(4 * length, 4 * length, length) + looking(3 + 16, 4 * length, 16)
    words = 16 * (linear + 2 * dim * 30522)
    assert found.text / 3 == pytest.approx(below + keys + above + words, rel=1e-6)
    blocks = 40 * (2 * seen * (4 * width**2 + 2 * width * 6144) + 4 * seen**2 * width)
    assert found.vision / 3 == pytest.approx(blocks, rel=0.01)
    card = yaml.safe_load((CARD / "result.yaml").read_text())["counted"]
    assert card == {
        "parameters": sum(each.numel() for each in model.parameters()),
        "tflop_per_pair": round(found.total / 1e12, 3),
        "text_percent": round(100 * found.text / found.total, 1),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": [1]}, r"batch_sizes=\[1\]: matching needs at least 2"),
        ({"batch_sizes": []}, r"batch_sizes=\[\]: matching"),
        ({"length": 11}, r"length=11: must be in \[3, max_positions=10\]"),
        ({"num_steps": 0}, "num_steps=0: must be at least 1"),
        ({"device": "meta"}, "device=meta: not usable here"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        suite(**options)

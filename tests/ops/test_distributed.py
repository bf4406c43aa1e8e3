from pathlib import Path

import pytest
import torch
from torch import nn

from ivt2.losses.contrastive import contrastive_loss
from ivt2.losses.matching import hard_negatives
from ivt2.ops.distributed import all_gather, gather_objects, global_mean, rank_and_world
from tests.ops.distributed_ranks import SIZES, Towers, data, gradients, one_output
from tests.ops.launch import run_ranks

both_gradients = pytest.mark.parametrize("reference_gradient_scale", [False, True])
all_sizes = pytest.mark.parametrize("sizes", SIZES)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found."""
    return run_ranks(Path(__file__).with_name("distributed_ranks.py"), tmp_path_factory.mktemp("ranks"))


def full_batch(num):
    """The same loss and gradients in one process."""
    towers = Towers()
    clips, captions, _, ids = data(num)
    loss = contrastive_loss(towers.visual(clips), towers.text(captions), towers.temperature, ids)
    loss.backward()
    return {"loss": loss.detach()} | gradients(towers)


def test_one_process_is_the_whole_world():
    assert rank_and_world() == (0, 1)
    assert gather_objects("own") == ["own"]


@both_gradients
def test_one_process_gathers_itself(reference_gradient_scale):
    x = torch.randn(3, 2, requires_grad=True)
    gathered = all_gather(x, reference_gradient_scale=reference_gradient_scale)
    gathered.square().sum().backward()
    assert torch.equal(gathered, x)
    assert torch.equal(x.grad, 2 * x)


@pytest.mark.parametrize("count", [4, torch.tensor(4)])
def test_mean_of_one_process(count):
    total = torch.tensor(6.0, requires_grad=True)
    mean = global_mean(total, count)
    mean.backward()
    assert mean.item() == 1.5
    assert total.grad.item() == 0.25


def test_mean_of_nothing_is_a_zero_with_a_graph():
    layer = nn.Linear(3, 1)
    mean = global_mean(layer(torch.zeros(0, 3)).sum(), 0)
    mean.backward()
    assert mean.item() == 0
    assert torch.equal(layer.weight.grad, torch.zeros(1, 3))


@pytest.mark.dist
def test_ranks_know_themselves(ranks):
    assert [found["rank_and_world"] for found in ranks] == [(0, 2), (1, 2)]


@pytest.mark.dist
@all_sizes
def test_gradient_averaged_over_ranks_is_that_of_the_full_batch(ranks, sizes):
    expected = full_batch(sum(SIZES[sizes]))
    for found in ranks:
        torch.testing.assert_close(found[f"contrastive/{sizes}/False"], expected)


@pytest.mark.dist
@all_sizes
def test_reference_scale_halves_the_gradient_of_the_towers_alone(ranks, sizes):
    expected = full_batch(sum(SIZES[sizes]))
    for name in expected:
        if name.startswith(("visual", "text")):
            expected[name] /= 2
    for found in ranks:
        torch.testing.assert_close(found[f"contrastive/{sizes}/True"], expected)


@pytest.mark.dist
@all_sizes
def test_mean_over_ranks_is_the_mean_over_items(ranks, sizes):
    layer = one_output()
    mean = layer(data(sum(SIZES[sizes]))[0]).exp().mean()
    mean.backward()
    found = [dict(each[f"mean/{sizes}"]) for each in ranks]
    torch.testing.assert_close(torch.stack([each.pop("loss") for each in found]).mean(), mean.detach())
    for each in found:
        torch.testing.assert_close(each, gradients(layer))


@pytest.mark.dist
def test_every_type_of_ragged_items_arrives_in_rank_order(ranks):
    for found in ranks:
        assert found["bool"].tolist() == [True, True, False, True, False]
        assert found["int"].tolist() == [[0, 1], [100, 101], [102, 103], [104, 105], [106, 107]]
        assert found["bfloat16"].dtype == torch.bfloat16
        assert found["bfloat16"][:, 1].tolist() == [0.5, 1.5, 1.5, 1.5, 1.5]
        assert found["nothing"].shape == (0, 3)
        assert found["objects"] == [{"rank": rank, "words": ["a"] * own} for rank, own in enumerate(SIZES["ragged"])]
        assert found["nothing counted"].item() == 0


@pytest.mark.dist
def test_negatives_mined_in_groups_do_not_depend_on_ranks(ranks):
    clips, captions, noise, ids = data(8)
    alone = hard_negatives(clips[:, :5], captions, 0.2, ids, noise, group_size=2)
    for found in ranks:
        assert torch.equal(found["negatives"], torch.stack(alone[:2]))

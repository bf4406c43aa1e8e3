"""Which parts learn, and which are held still, in a network whose every part tells."""

import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from ivt2.nn.drop_path import DropPath
from ivt2.optim.freezing import Frozen


class Tower(nn.Module):
    """Everything that behaves differently while training."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.drop_path = DropPath(0.5)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.fixed = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.head(self.drop_path(self.dropout(self.norm(self.linear(x))))) * self.scale + self.fixed


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = Tower()
        self.right = Tower()


PARAMETERS = {"linear.weight", "linear.bias", "norm.weight", "norm.bias", "head.0.weight", "head.0.bias", "scale"}
MODULES = {"linear", "norm", "dropout", "drop_path", "head", "head.0", "head.1", ""}


@pytest.fixture
def towers():
    torch.manual_seed(0)
    return Towers()


def learning(model, tower):
    return {name for name, each in getattr(model, tower).named_parameters() if each.requires_grad}


def training(model, tower):
    return {name for name, each in getattr(model, tower).named_modules() if each.training}


HEAD = {"head.0.weight", "head.0.bias"}


@pytest.mark.parametrize(
    ("frozen", "trained", "parameters", "modules"),
    [
        ([], [], PARAMETERS, MODULES),
        (["left"], [], set(), set()),
        (["left.norm"], [], PARAMETERS - {"norm.weight", "norm.bias"}, MODULES - {"norm"}),
        (["left.scale"], [], PARAMETERS - {"scale"}, MODULES),
        (["left.dropout"], [], PARAMETERS, MODULES - {"dropout"}),
        (["left"], ["left.head"], HEAD, {"", "head", "head.0", "head.1"}),
        (["left"], ["left.head.0"], HEAD, {"", "head", "head.0"}),
        (["left"], ["left.head.1"], set(), {"", "head", "head.1"}),
        (["left"], ["left.scale"], {"scale"}, {""}),
        (["left"], ["left.fixed", "left.scale"], {"scale"}, {""}),
        (["left.head.0", "left"], ["left.head"], set(), {"", "head", "head.1"}),
        (["left", "left.head"], ["left.head.0"], HEAD, {"", "head", "head.0"}),
    ],
    ids=lambda value: "-".join(sorted(value)),
)
def test_what_learns_and_what_is_held_still(towers, frozen, trained, parameters, modules):
    held = Frozen(towers, frozen, trained)
    for _ in range(2):
        towers.train()
        held.eval_mode()
        assert learning(towers, "left") == parameters
        assert training(towers, "left") == modules
        assert learning(towers, "right") == PARAMETERS
        assert training(towers, "right") == MODULES


def test_a_frozen_tower_says_the_same_twice_and_keeps_its_statistics(towers):
    held = Frozen(towers, ["left"])
    towers.train()
    held.eval_mode()
    x = torch.randn(8, 4)
    before = {name: each.clone() for name, each in towers.left.state_dict().items()}
    first = towers.left(x)
    assert not first.requires_grad
    assert torch.equal(first, towers.left(x))
    torch.testing.assert_close(dict(towers.left.state_dict()), before, rtol=0, atol=0)
    assert not torch.equal(towers.right(x), towers.right(x))
    assert towers.right.norm.num_batches_tracked == 2


def test_evaluation_stays_evaluation(towers):
    held = Frozen(towers, ["left"], ["left.head"])
    towers.eval()
    held.eval_mode()
    assert training(towers, "left") == training(towers, "right") == set()


def test_a_shared_parameter_is_frozen_under_either_name(towers):
    towers.right.linear.weight = towers.left.linear.weight
    Frozen(towers, ["right.linear"])
    assert learning(towers, "left") == PARAMETERS - {"linear.weight"}


def test_nothing_is_read_from_the_meta_device():
    with torch.device("meta"):
        towers = Towers()
    Frozen(towers, ["left"], ["left.head"]).eval_mode()
    assert learning(towers, "left") == HEAD
    assert learning(towers.to_empty(device="cpu"), "left") == HEAD


@pytest.mark.parametrize(
    ("frozen", "trained", "message"),
    [
        (["lefd"], [], r"^frozen: the model has no part named 'lefd'; did you mean left or left\.head\?$"),
        (["xyz"], [], r"^frozen: the model has no part named 'xyz'; its parts are left, right$"),
        ([""], [], r"^frozen: the model has no part named ''; its parts are left, right$"),
        (["left"], ["left.haed"], r"^trained: the model has no part named 'left.haed'; did you mean left\.head"),
        (["left"], ["right.head"], r"^trained: 'right.head' is not below a frozen part \(frozen=\['left'\]\)"),
        ([], ["left"], r"^trained: 'left' is not below a frozen part"),
        (["left"], ["left"], r"^trained: 'left' stands in frozen too: take it out of one of them$"),
        (["left", "right"], [], r"^frozen=\['left', 'right'\] leaves nothing to train: name fewer parts"),
        (["left", "right"], ["left.fixed"], "leaves nothing to train"),
    ],
    ids=str,
)
def test_mistakes_are_named_in_one_line(towers, frozen, trained, message):
    with pytest.raises(InputError, match=message) as caught:
        Frozen(towers, frozen, trained)
    assert "\n" not in str(caught.value)

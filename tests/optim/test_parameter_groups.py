import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from ivt2.optim.parameter_groups import parameter_groups


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
        self.clip_pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
        self.proj = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.encoder = Encoder()
        self.head = nn.Linear(4, 2)
        self.tied = self.head


def split(model, **options):
    """Names of the parameters of each group, by its settings."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model.named_parameters(), **options)
    return {
        (group.get("weight_decay"), group.get("lr")): [names[id(parameter)] for parameter in group["params"]]
        for group in groups
    }


def test_vectors_biases_and_listed_names_do_not_decay():
    assert split(Model(), no_weight_decay=["pos_embed"]) == {
        (0.0, None): [
            "temperature",
            "encoder.pos_embed",
            "encoder.proj.bias",
            "encoder.norm.weight",
            "encoder.norm.bias",
            "head.bias",
        ],
        (None, None): ["encoder.clip_pos_embed", "encoder.proj.weight", "head.weight"],
    }


def test_a_bias_of_two_dimensions_does_not_decay():
    weights = {"attention.bias": nn.Parameter(torch.zeros(2, 2)), "biased": nn.Parameter(torch.zeros(2, 2))}
    groups = parameter_groups(weights.items())
    assert [(group["name"], len(group["params"])) for group in groups] == [("no_decay", 1), ("decay", 1)]
    assert groups[0]["params"][0] is weights["attention.bias"]


def test_listed_names_may_be_whole():
    undecayed = split(Model(), no_weight_decay={"encoder.clip_pos_embed"})[0.0, None]
    assert "encoder.clip_pos_embed" in undecayed
    assert "encoder.pos_embed" not in undecayed


def test_frozen_parameters_are_left_out():
    model = Model()
    model.encoder.requires_grad_(requires_grad=False)
    assert split(model) == {(0.0, None): ["temperature", "head.bias"], (None, None): ["head.weight"]}


def test_first_matching_expression_sets_the_learning_rate():
    groups = split(Model(), learning_rates={r"proj\.weight$": 1e-3, "^encoder": 1e-4})
    assert groups[None, 1e-3] == ["encoder.proj.weight"]
    assert groups[None, 1e-4] == ["encoder.pos_embed", "encoder.clip_pos_embed"]
    assert groups[None, None] == ["head.weight"]
    assert groups[0.0, 1e-4] == ["encoder.proj.bias", "encoder.norm.weight", "encoder.norm.bias"]


def test_expression_without_match_is_named():
    model = Model()
    with pytest.raises(InputError, match="'decoder' matches no trainable parameter"):
        parameter_groups(model.named_parameters(), learning_rates={"decoder": 1e-3})


def test_groups_work_in_an_optimizer():
    model = Model()
    groups = parameter_groups(model.named_parameters(), learning_rates={"^head": 1e-3})
    optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.3)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        ("no_decay", 1e-4, 0.0),
        ("no_decay_lr_0.001", 1e-3, 0.0),
        ("decay", 1e-4, 0.3),
        ("decay_lr_0.001", 1e-3, 0.3),
    ]
    # A shared layer is in once.
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
